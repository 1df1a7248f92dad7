"""Look at what a run injects: how long its vectors are, what they know, whether the model reads them, what leaks.

    python tools/bench/injection.py RUN --data DATASET [--checkpoint step-00001100 ...] [--steps 8] [--out FILE]

For every checkpoint (default: all that RUN keeps) the model predicts the same masked words of sequences with an
injected mention four times, without memory: with the mention's own words, with h_e, with the mean word vector in its
place, and with another mention's h_e. The gate: h_e is at least 20% of the way from the mean vector to the own words,
and better than another mention's. Exit code 1 if a checkpoint does not pass it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor

from trelm_ds.batches import KnowledgeIndex, Step
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.knowledge.tables import token_means
from trelm_ds.model import Batch, StepTables
from trelm_ds.run_folder import committed, read_metrics, step_of
from trelm_ds.settings import add_settings, parse
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.trainer import Trainer

GATE = 0.2  # share of the way from the mean vector's loss to the own words'
SAMPLE = 4096  # rows whose norms and cosines are measured
INPUTS = ("own words", "h_e", "mean vector", "another h_e")


def open_run(run: Path, data: Path, checkpoint: Path, folder: Path, ranks: Ranks, signals: StopSignals) -> Trainer:
    """Build the run as a checkpoint has it, in a folder of its own."""
    parser = ArgumentParser()
    add_settings(parser)
    config, _ = parse(parser, ["--config", str(run / "config.yaml")])
    quiet = replace(config.tracking, enabled=False)
    trainer = replace(config.trainer, resume=str(checkpoint))
    config = replace(config, tracking=quiet, trainer=trainer, loader=replace(config.loader, workers=0))
    return build_run(config, str(data), folder, ranks, signals)


@torch.no_grad()
def losses(trainer: Trainer, steps: int) -> tuple[dict[str, float], dict[str, int]]:
    """Compute the mean MLM loss by input, and count what was looked at, over the steps that come next."""
    knowledge = trainer.component(Knowledge)
    total, counts = dict.fromkeys(INPUTS, 0.0), {"words": 0, "injected": 0, "leaks": 0, "sequences": 0}
    for number in range(trainer.step, trainer.step + steps):
        step = trainer.steps[number]
        assert isinstance(step, Step), step
        knowledge.before_step(step, number)
        tables = knowledge.model_inputs()["tables"]._replace(memories=torch.zeros(0, knowledge.size), memory_lambda=0.0)
        for batch in step.micro_batches:
            counts["sequences"] += batch.n_sequences
            add_losses(trainer, batch, tables, total, counts)
            counts["leaks"] += leaks(knowledge.index, batch, step)
    return {name: value / max(1, counts["words"]) for name, value in total.items()}, counts


def add_losses(
    trainer: Trainer, batch: Batch, tables: StepTables, total: dict[str, float], counts: dict[str, int]
) -> None:
    """Add a micro-batch's losses of masked words that share a sequence with an injected mention."""
    model, items = trainer.engine.module, batch.items
    made = model.injection(items, tables)
    assert items is not None
    assert made is not None
    triple = (items.entity >= 0).nonzero()[:, 0]
    has = torch.zeros(len(batch.cu_seqlens), dtype=torch.bool)
    has[torch.searchsorted(batch.cu_seqlens, items.cls[triple].int(), right=True) - 1] = True
    asked = has[torch.searchsorted(batch.cu_seqlens, batch.mlm_positions.int(), right=True) - 1]
    positions, labels = batch.mlm_positions[asked], batch.mlm_labels[asked]
    counts["words"] += len(labels)
    counts["injected"] += len(triple)
    mean, turned = made.vectors.clone(), made.vectors.clone()
    mean[triple] = model.encoder.embeddings.word.weight.float().mean(0)
    turned[triple] = made.vectors[triple.roll(1)]
    inputs = (None, made, made._replace(vectors=mean), made._replace(vectors=turned))
    for name, injection in zip(INPUTS, inputs, strict=True):
        hidden = model.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, injection, batch.tail)
        scores = model.logits(hidden[positions]).float()
        total[name] += float(F.cross_entropy(scores, labels, reduction="sum"))


def leaks(index: KnowledgeIndex, batch: Batch, step: Step) -> int:
    """Count injected triples whose other end's name has to be predicted, in whole or part, in the same sequence."""
    items, names, found = batch.items, index.names, 0
    assert items is not None
    shown = batch.input_ids.index_copy(0, batch.mlm_positions, batch.mlm_labels).numpy()
    masked = set(batch.mlm_positions.tolist())
    bounds = batch.cu_seqlens.numpy()
    for number in (items.entity >= 0).nonzero()[:, 0].tolist():
        entity = index.vector_entities[int(step.vector_rows[items.entity[number]])]
        name = names.entity_tokens[names.entity_offsets[entity] : names.entity_offsets[entity + 1]]
        place = int(np.searchsorted(bounds, int(items.cls[number]), side="right")) - 1
        first, last = bounds[place], bounds[place + 1]
        windows = np.lib.stride_tricks.sliding_window_view(shown[first:last], min(len(name), last - first))
        begins = first + np.flatnonzero((windows == name).all(axis=1)) if len(name) <= last - first else []
        found += any(not masked.isdisjoint(range(begin, begin + len(name))) for begin in begins)
    return found


@torch.no_grad()
def vectors(trainer: Trainer) -> dict[str, float]:
    """Measure the norms of words, vectors, h_e and memories, and what vectors have to do with names and each other."""
    knowledge = trainer.component(Knowledge)
    index, table, bank = knowledge.index, knowledge.vectors, knowledge.bank
    word = trainer.engine.module.encoder.embeddings.word.weight.float()
    found = {"norm, word": float(word.norm(dim=1).mean())}
    if table is not None and table.n_entities:
        entities, relations = table.local[: table.n_entities].float(), table.local[table.n_entities :].float()
        found["norm, entity"] = float(entities.norm(dim=1).mean())
        found["norm, relation"] = float(relations.norm(dim=1).mean())
        head, relation, tail = edges_within(index)
    if table is not None and table.n_entities and len(head):
        h_e = entities[tail] - relations[relation]
        own = token_means(word, index.names.entity_offsets, index.names.entity_tokens)(
            torch.from_numpy(np.asarray(index.vector_entities)[head])
        )
        found["norm, h_e"] = float(h_e.norm(dim=1).mean())
        found["cosine, h_e and own name"] = cosine(h_e, own)
        found["cosine, h_e and another's name"] = cosine(h_e, own.roll(1, 0))
        found["cosine, v_head and v_tail - v_rel"] = cosine(entities[head], h_e)
        found["cosine, v_head and another v_tail - v_rel"] = cosine(entities[head], h_e.roll(1, 0))
    if bank is not None and (seen := bank.contexts.local[:, 0] > 0).any():
        rows = seen.nonzero()[:SAMPLE, 0]
        local, global_ = bank.table.local[rows].float().chunk(2, dim=1)
        found["norm, local memory"] = float(local.norm(dim=1).mean())
        found["norm, global memory"] = float(global_.norm(dim=1).mean())
        found["cosine, two global memories, not centred"] = float(
            F.cosine_similarity(global_, global_.roll(1, 0)).mean()
        )
        mixed = bank.mixed(bank.start_lookup(rows).wait(), word.norm(dim=1).mean())
        found["norm, both memories as they are mixed in"] = float(mixed.norm(dim=1).mean())
    return {name: round(value, 4) for name, value in found.items()}


def edges_within(index: KnowledgeIndex) -> tuple[Tensor, Tensor, Tensor]:
    """Sample triples whose ends are both in the vector table: rows of head, relation and tail, int64 [n] each."""
    graph, known = index.graph, np.asarray(index.vector_entities)
    heads = np.repeat(np.arange(len(graph.entities)), np.diff(graph.out_offsets))
    tails, relations = np.asarray(graph.out_entities), np.asarray(graph.out_relations)
    inside = np.flatnonzero(np.isin(heads, known) & np.isin(tails, known) & (heads != tails))
    chosen = np.random.default_rng(0).permutation(inside)[:SAMPLE]
    columns = np.searchsorted(known, heads[chosen]), relations[chosen], np.searchsorted(known, tails[chosen])
    head, relation, tail = (torch.from_numpy(np.asarray(column, dtype=np.int64)) for column in columns)
    return head, relation, tail


def cosine(one: Tensor, other: Tensor) -> float:
    """Average the cosine of rows [n, D], each set about its own mean."""
    return float(F.cosine_similarity(one - one.mean(0), other - other.mean(0)).mean())


def passes(found: dict[str, float]) -> bool:
    """Whether the losses pass SPEC 3's gate."""
    way = found["mean vector"] - found["own words"]
    return found["mean vector"] - found["h_e"] >= GATE * way > 0 and found["h_e"] < found["another h_e"]


def over_the_run(run: Path, config: Config) -> dict[str, Any]:
    """Average what the run logged: doses per sequence, and lambda at ten places."""
    points = read_metrics(run)
    logged = {}
    for name in ("injected_per_sequence", "facts_per_sequence", "mentions_per_sequence"):
        values = [point[name] for point in points if name in point]
        if values:
            logged[name] = round(float(np.mean(values)), 3)
    lambdas = [point.get("memory_lambda", 0.0) for point in points]
    places = np.linspace(0, len(lambdas) - 1, 10).round().astype(int) if lambdas else []
    return {
        **logged,
        "lambda": [lambdas[place] for place in places],
        "mean lambda": round(float(np.mean(lambdas or [0])), 3),
    }


def measure(run: Path, data: Path, checkpoints: list[Path], steps: int) -> dict[str, Any]:
    """Measure every checkpoint of a run."""
    ranks, found = connect(), {}
    try:
        for checkpoint in checkpoints:
            with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
                trainer = open_run(run, data, checkpoint, Path(folder) / "run", ranks, signals)
                with trainer.held:
                    trainer.engine.eval()
                    by_input, counts = losses(trainer, steps)
                    way = by_input["mean vector"] - by_input["own words"]
                    found[str(step_of(checkpoint))] = {
                        "loss": {name: round(value, 4) for name, value in by_input.items()},
                        "way": round((by_input["mean vector"] - by_input["h_e"]) / way, 3) if way else None,
                        "passes": passes(by_input),
                        "looked at": counts,
                        "vectors": vectors(trainer),
                    }
                    config = trainer.config
    finally:
        disconnect()
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": datetime.date.today().isoformat(),
        "injection": {"source": config.injection.source, "projection": config.injection.projection},
        "run": over_the_run(run, config),
        "checkpoints": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="dataset that the run was trained on")
    parser.add_argument("--checkpoint", nargs="+", help="names of RUN/checkpoints (default: all)")
    parser.add_argument("--steps", type=int, default=8, help="steps' worth of sequences to predict")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    kept = committed(options.run)
    chosen = [path for path in kept if not options.checkpoint or path.name in options.checkpoint]
    if not chosen:
        parser.error(f"{options.run}: holds {', '.join(path.name for path in kept) or 'no checkpoints'}")
    result = measure(options.run, options.data, sorted(chosen, key=step_of), options.steps)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0 if all(one["passes"] for one in result["checkpoints"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
