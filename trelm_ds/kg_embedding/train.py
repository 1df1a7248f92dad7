"""A training of vectors, from its settings to the file."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trelm_ds import __version__, faults, log
from trelm_ds.corpus import GRAPH_FOLDER
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.files import lock, write_atomically
from trelm_ds.kg_embedding.batches import TripleBatches
from trelm_ds.kg_embedding.held_out import Split, sample, split_graph
from trelm_ds.kg_embedding.memory import check_memory
from trelm_ds.kg_embedding.options import VectorOptions, check_same
from trelm_ds.kg_embedding.ranking import KnownTriples, rank_triples, summary
from trelm_ds.kg_embedding.updates import Embeddings, Objective
from trelm_ds.kg_embedding.vector_file import read_about, write_vectors
from trelm_ds.kg_embedding.work import Progress, WorkFolder
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.knowledge.tables import TableGroup
from trelm_ds.progress import ProgressBar
from trelm_ds.shards import Manifest, check_files
from trelm_ds.stopping import StopRequests, StopSignals, describe, exit_code

_ON_THE_WAY = 1000  # valid triples in an evaluation before the end


@dataclass(frozen=True)
class Trained:
    """What a training has come to.

    Attributes:
        result: metrics of the held-out triples, counts, the history; None where it was stopped.
        code: exit code: 0, or by what stopped it.
        made: whether it was trained now, and not before.
    """

    result: dict[str, Any] | None
    code: int
    made: bool


def train_vectors(options: VectorOptions, ranks: Ranks) -> Trained:
    """Train vectors on a dataset's graph and write `options.out`; collective. A training that was stopped goes on.

    Raises:
        UserError: options, dataset, work folder and output do not fit together, memory does not suffice, or the
            training diverges.
    """
    first = ranks.rank == 0
    identity = ranks.all_agree(lambda: _open(options))
    about = ranks.all_agree(lambda: read_about(options.out) if first else None)
    if (made := ranks.from_first(about)) is not None:
        ranks.all_agree(lambda: check_same(made["settings"], identity, f"--out: {options.out}"))
        ranks.all_agree(lambda: _write_metrics(options.metrics, identity, made["result"], {}) if first else None)
        return Trained(made["result"], 0, made=False)
    with ExitStack() as held:
        ranks.all_agree(lambda: _reserve(options, held) if first else None)
        training = Training(options, KnowledgeGraph.load(options.dataset / GRAPH_FOLDER), ranks)
        work = WorkFolder(options.work, identity, ranks)
        with StopSignals() as signals:  # later ones end the process at once: the last step is in a checkpoint
            reason = training.run(work, StopRequests(signals, options.work, None, watch_file=False))
        if reason:
            log.info_rank0(f"stopped by {describe(reason)} after a checkpoint; the same command goes on")
            return Trained(None, exit_code(reason), made=True)
        result = training.result()
        about = {"settings": identity, "result": result, "versions": versions()}
        training.write(options.out, about)
        ranks.all_agree(lambda: _write_metrics(options.metrics, identity, result, training.speed()) if first else None)
        work.remove()
    return Trained(result, 0, made=True)


def versions() -> dict[str, str]:
    """Return the versions of what computes vectors."""
    return {"trelm_ds": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def _open(options: VectorOptions) -> dict[str, Any]:
    options.check()
    manifest = Manifest.load(options.dataset)
    check_files(options.dataset, manifest, (GRAPH_FOLDER,))
    for name in ("out", "metrics"):
        path: Path | None = getattr(options, name)
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            raise UserError(f"--{name}: give a file in an existing folder, not {path}")
    return options.identity(manifest.fingerprint)


def _reserve(options: VectorOptions, held: ExitStack) -> None:
    try:
        options.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--work: {options.work} cannot be created: {error.strerror}") from None
    held.enter_context(lock(options.work / ".lock", f"--work: {options.work}"))


def _write_metrics(path: Path | None, settings: dict[str, Any], result: dict[str, Any], speed: dict[str, Any]) -> None:
    if path is not None:
        content = {"settings": settings, "result": result, "versions": versions()} | speed
        write_atomically(path, json.dumps(content, indent=1) + "\n")


class Training:
    """Trains, evaluates on the way, and knows the result; every method is collective."""

    def __init__(self, options: VectorOptions, graph: KnowledgeGraph, ranks: Ranks) -> None:
        self._options, self._graph, self._ranks = options, graph, ranks
        self._split = ranks.all_agree(lambda: _split(options, graph))
        self.steps = math.ceil(options.epochs * len(self._split.train) / options.batch_size)
        n_entities, n_relations = len(graph.entities), len(graph.relations)
        ranks.all_agree(lambda: check_memory(options.dim, n_entities + n_relations, len(self._split.train), ranks))
        if ranks.world_size > (chunks := options.batch_size // options.chunk_size):
            log.warning_rank0(
                f"--batch-size {options.batch_size} has {chunks} chunks of {options.chunk_size}: "
                f"{ranks.world_size - chunks} of {ranks.world_size} ranks have nothing to compute"
            )
        group = TableGroup.of(ranks)
        self._embeddings = Embeddings(n_entities, n_relations, options.dim, ranks.device, group)
        self._method = options.make_method()
        self._objective = Objective(
            self._method, options.resolved_margin, options.temperature, options.resolved_regularization
        )
        self._batches = TripleBatches(
            graph,
            self._split.train,
            options.batch_size,
            options.chunk_size,
            options.negatives,
            options.seed,
            ranks.rank,
            ranks.world_size,
        )
        self._known = KnownTriples(graph, self._split.beyond)
        self._progress = Progress()
        self._seconds, self._cpu_seconds, self._steps_timed = 0.0, 0.0, 0

    def run(self, work: WorkFolder, stop: StopRequests) -> int:
        """Train to the last step; return 0, or the reason to stop before it, after a checkpoint."""
        options, found = self._options, work.restore(self._embeddings)
        if found is None:
            self._embeddings.initialize(options.seed, self._method.spread(options.resolved_margin, options.dim))
        else:
            self._progress = found
            log.info_rank0(f"continuing at step {found.step} of {self.steps}")
        saved, first = time.monotonic(), self._progress.step
        begun = first * options.batch_size
        total = self.steps * options.batch_size
        with ProgressBar("training triples", total, begun, enabled=self._ranks.rank == 0) as bar:
            while self._progress.step < self.steps:
                due = time.monotonic() - saved > 60 * options.checkpoint_minutes
                wishes = self._step(stop.reason(), due and self._ranks.rank == 0)
                bar.advance(options.batch_size, self._note())
                faults.reach("step-done")
                reason = self._ranks.max(stop.reason()) if wishes else 0
                if wishes and self._progress.step < self.steps:
                    work.save(self._embeddings, self._progress)
                    saved = time.monotonic()
                if reason and self._progress.step < self.steps:
                    return reason
        if self._progress.step > first:  # the last evaluation may take long
            work.save(self._embeddings, self._progress)
        return 0

    def _step(self, reason: int, due: bool) -> bool:
        """Take one step, and evaluate where it is time to; return whether any rank wishes for a checkpoint."""
        options, progress = self._options, self._progress
        started, cpu_started = time.monotonic(), time.process_time()
        lr = options.resolved_lr * (1 - (1 - options.final_lr) * progress.step / self.steps)
        chunks = self._batches(progress.step)
        share = self._embeddings.step(self._objective, chunks, options.batch_size, lr)
        loss, wishes = self._ranks.sum(share, float(bool(reason) or due))
        if not math.isfinite(loss):
            raise self._diverged()
        progress.step, progress.loss_sum = progress.step + 1, progress.loss_sum + loss
        progress.loss_steps += 1
        self._seconds += time.monotonic() - started
        self._cpu_seconds += time.process_time() - cpu_started
        self._steps_timed += 1
        every = max(1, round(options.eval_every * len(self._split.train) / options.batch_size))
        if options.eval_every and progress.step % every == 0 and progress.step < self.steps:
            self._record()
        return wishes > 0

    def _diverged(self) -> UserError:
        return UserError(
            f"--lr: the loss is not finite after {self._progress.step} steps; give less than "
            f"{self._options.resolved_lr:g}"
        )

    def _record(self) -> None:
        """Add an entry to the history: the loss since the last one, and the metrics of some valid triples."""
        progress = self._progress
        loss = progress.loss_sum / max(1, progress.loss_steps)
        epoch = progress.step * self._options.batch_size / len(self._split.train)
        entry: dict[str, Any] = {"step": progress.step, "epoch": round(epoch, 3), "loss": round(loss, 6)}
        progress.loss_sum, progress.loss_steps = 0.0, 0
        if len(self._split.held_out["valid"]):
            most = min(self._options.eval_triples or _ON_THE_WAY, _ON_THE_WAY)
            metrics = self._evaluate("valid", most)
            entry |= {"valid": metrics}
            log.info_rank0(f"epoch {epoch:.1f}: loss {loss:.4f}, {format_metrics('valid', metrics)}")
        progress.history.append(entry)

    def _evaluate(self, name: str, most: int | None) -> dict[str, Any]:
        triples = sample(self._split.held_out[name], most, self._options.seed)
        with ProgressBar(f"ranking {name} triples", len(triples), enabled=self._ranks.rank == 0) as bar:
            ranks = rank_triples(self._embeddings, self._method, triples, self._known, bar.advance)
        return summary(ranks)

    def _note(self) -> str:
        progress = self._progress
        loss = f"loss {progress.loss_sum / progress.loss_steps:.4f}, " if progress.loss_steps else ""
        return f"{loss}{self.speed()['triples_per_second']:,} triples/s"

    def speed(self) -> dict[str, int]:
        """Return triples of all ranks per second, and per CPU second of this rank, evaluations left out."""
        triples = self._steps_timed * self._options.batch_size
        return {
            "triples_per_second": round(triples / max(self._seconds, 1e-9)),
            "triples_per_cpu_second": round(triples / max(self._cpu_seconds, 1e-9)),
            "ranks": self._ranks.world_size,
        }

    def result(self) -> dict[str, Any]:
        """Evaluate the vectors as they are, and count what they were trained on."""
        split, options = self._split, self._options
        finite = bool(self._embeddings.table.local.isfinite().all())
        if self._ranks.sum(float(not finite))[0]:
            raise self._diverged()
        if self._progress.loss_steps:
            progress = self._progress
            loss = progress.loss_sum / progress.loss_steps
            epoch = progress.step * options.batch_size / len(split.train)
            progress.history.append({"step": progress.step, "epoch": round(epoch, 3), "loss": round(loss, 6)})
        counts = {
            "entities": len(split.entities),
            "entities without a training triple": int((~split.entities).sum()),
            "relations": len(split.relations),
            "relations without a training triple": int((~split.relations).sum()),
            "training triples": len(split.train),
        } | {f"{name} triples": len(triples) for name, triples in split.held_out.items()}
        metrics = {
            name: self._evaluate(name, options.eval_triples) for name, triples in split.held_out.items() if len(triples)
        }
        return {"steps": self.steps, "counts": counts, "metrics": metrics, "history": self._progress.history}

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write the vectors."""
        ids = (np.asarray(self._graph.entities), np.asarray(self._graph.relations))
        trained = (self._split.entities, self._split.relations)
        write_vectors(path, self._embeddings, self._method, ids, trained, about, self._ranks)


def _split(options: VectorOptions, graph: KnowledgeGraph) -> Split:
    held: dict[str, float | Path] = {
        "valid": options.valid or options.valid_share,
        "test": options.test or options.test_share,
    }
    return split_graph(graph, options.seed, held)


def format_metrics(name: str, metrics: dict[str, Any]) -> str:
    """Say metrics in a line, in percent."""
    hits = ", ".join(f"{key.capitalize()} {100 * metrics[key]:.1f}" for key in metrics if key.startswith("hits@"))
    return f"{name} MRR {100 * metrics['mrr']:.1f}, {hits} ({metrics['triples']:,} triples)"
