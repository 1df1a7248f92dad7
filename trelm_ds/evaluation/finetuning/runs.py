"""Fine-tune for a task with every learning rate and seed that is asked for; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.encoding import ExampleEncoder
from trelm_ds.evaluation.finetuning.folder import PretrainedFolder
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.tracking import TaskTracking
from trelm_ds.evaluation.finetuning.trainer import FineTuning, RunRecord, plain
from trelm_ds.evaluation.finetuning.workers import Workers
from trelm_ds.evaluation.results import spread, spreads
from trelm_ds.evaluation.tasks import Example, Task
from trelm_ds.files import canonical_json, write_atomically

RECORD = "record.json"
_VERSION = 1  # of what a run computes; another one makes records of before invalid


class TaskRuns(NamedTuple):
    """All runs of a task with the chosen learning rate, in order of their seeds, and the result they make."""

    records: list[RunRecord]
    result: dict[str, Any]


def prepare_task(task: Task, model: PretrainedFolder, options: FinetuneOptions, workers: Workers) -> FineTuning:
    """Encode a task's examples for a model.

    Raises:
        UserError: an example does not fit the model; names file and record.
    """
    config = model.encoder.config
    longest = min(config.max_position_embeddings, options.max_length or config.max_position_embeddings)
    encoder = ExampleEncoder(model.tokenizer, longest, config.type_vocab_size, options.truncate)
    splits = {name: encoder.encode(task, examples) for name, examples in task.splits.items()}
    return FineTuning(task, splits, model.encoder, model.pooler, options, workers)


def run_task(
    tuning: FineTuning,
    digest: dict[str, str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    folder: Path,
    tracking: TaskTracking,
) -> TaskRuns:
    """Fine-tune for a task; of several learning rates the one with the best mean dev score is reported; collective.

    Every run leaves a record in a folder of its own. A record of the same data, model and settings is taken as it is,
    so a command that was killed goes on with the run that it was at.

    Args:
        digest: of the model, as `PretrainedFolder` has it.
        folder: where the runs' folders are.

    Raises:
        UserError: no learning rate came to an end with finite losses, or a record cannot be written.
    """
    task, identity = tuning.task, _identity(tuning, digest)
    by_lr = {lr: [_run(tuning, lr, seed, identity, folder, tracking) for seed in seeds] for lr in lrs}
    sound = {lr: records for lr, records in by_lr.items() if all(record.best_epoch for record in records)}
    if not sound:
        tried = " ".join(f"{lr:g}" for lr in lrs)
        raise UserError(f"{task.name}: the loss was not finite with --lr {tried}; lower it")
    dev = {lr: spread([record.scores["dev"][task.metric] for record in records]) for lr, records in sound.items()}
    best = max(dev, key=lambda lr: (dev[lr]["mean"], -lr))
    grid = [{"lr": lr, "dev": dev.get(lr)} for lr in lrs]
    return TaskRuns(by_lr[best], _result(tuning, by_lr[best], grid))


def _run(
    tuning: FineTuning, lr: float, seed: int, identity: dict[str, Any], folder: Path, tracking: TaskTracking
) -> RunRecord:
    """Take the record of a run, or make it; collective."""
    workers, name = tuning.workers, f"{tuning.task.name}-lr{lr}-seed{seed}"
    path = folder / name / RECORD
    mine = identity | {"lr": lr, "seed": seed}
    known = workers.gather(_known(path, mine) if workers.rank == 0 else None)[0]
    if known is not None:
        tracking.known(name)
        return known
    with ExitStack() as held:
        child = workers.all_agree(lambda: held.enter_context(tracking.child(name, mine)))
        record = workers.gather(tuning.run(lr, seed, child.epoch))[0]  # they differ in the time it took
        # Before MLflow is waited for.
        workers.all_agree(lambda: _write_record(path, record, mine) if workers.rank == 0 else None)
        child.finished(record)
    return record


def _write_record(path: Path, record: RunRecord, identity: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"identity": identity, "record": record.to_json()}) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _known(path: Path, identity: dict[str, Any]) -> RunRecord | None:
    """Read a run's record; None where there is none, or one of other data, model or settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = RunRecord.from_json(content["record"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        log.warning(f"{path}: damaged; this run is made again")
        return None
    before = content.get("identity")
    if before == json.loads(json.dumps(identity)):
        return record
    changed = [name for name in identity if not isinstance(before, dict) or before.get(name) != identity[name]]
    log.info(f"{path}: made with another {', '.join(changed)}; this run is made again")
    return None


def _identity(tuning: FineTuning, digest: dict[str, str]) -> dict[str, Any]:
    """Say what a run depends on, but for learning rate and seed; the paths of data and model do not matter."""
    data = canonical_json({name: _content(split) for name, split in tuning.task.splits.items()})
    return {
        "version": _VERSION,
        "task": tuning.task.name,
        "data": hashlib.sha256(data.encode()).hexdigest(),
        "scoring": tuning.task.scoring,
        "model": digest,
        "options": asdict(tuning.options),
        "processes": tuning.workers.world_size,
    }


def _content(examples: list[Example]) -> list[Any]:
    return [[*example.texts, plain(example.target)] for example in examples]


def _result(tuning: FineTuning, records: list[RunRecord], grid: list[dict[str, Any]]) -> dict[str, Any]:
    task = tuning.task
    splits = {name: spreads([record.scores[name] for record in records]) for name in task.evaluated}
    return {
        "metric": task.metric,
        "reported": task.reported,
        "scores": splits[task.reported],
        "splits": splits,
        "baseline": {name: task.baseline(name) for name in task.evaluated},
        "labels": list(task.labels),
        "examples": {name: len(split) for name, split in task.splits.items()},
        "shortened": tuning.shortened,
        "notes": task.notes,
        "scoring": task.scoring,
        "lr": records[0].lr,
        "grid": grid,
        "options": asdict(tuning.options),
        "runs": [
            {
                "seed": record.seed,
                "best_epoch": record.best_epoch,
                "diverged": record.diverged,
                "epochs": [asdict(epoch) for epoch in record.epochs],
                "scores": record.scores,
                "seconds": round(record.seconds, 1),
            }
            for record in records
        ],
    }


def prediction_lines(task: Task, records: list[RunRecord]) -> list[dict[str, Any]]:
    """List every example of the scored splits with what was predicted of it, seed by seed."""
    lines = []
    for split, examples in task.evaluated.items():
        for index, gold in enumerate(plain(example.target) for example in examples):
            predicted = [record.predictions[split][index] for record in records]
            lines.append({"task": task.name, "split": split, "index": index, "gold": gold, "predicted": predicted})
    return lines
