"""Fine-tune a model for one task or several, score it, and write down what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.folder import PretrainedFolder, open_pretrained
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.runs import TaskRuns, prediction_lines, prepare_task, run_task
from trelm_ds.evaluation.finetuning.tracking import TaskTracking
from trelm_ds.evaluation.finetuning.trainer import FineTuning
from trelm_ds.evaluation.finetuning.workers import Workers
from trelm_ds.evaluation.results import check_not_another, predictions_file, spread, write_predictions, write_result
from trelm_ds.evaluation.tasks import Task
from trelm_ds.files import lock
from trelm_ds.run_folder import LOCK


@dataclass(frozen=True)
class Evaluation:
    """What `trelm evaluate typing | relation | glue` was asked for.

    Attributes:
        name: "typing", "relation" or "glue".
        model: Hugging Face folder.
        data: the task's folder.
        out: JSON file for the result.
        tasks: read a task each; "glue" has several.
        options: by the task's name.
        lrs: learning rates to try.
        seeds: of the runs with each.
        tracking_uri, experiment: where MLflow hears of it.
        tracks: whether it does.
    """

    name: str
    model: Path
    data: Path
    out: Path
    tasks: dict[str, Callable[[], Task]]
    options: dict[str, FinetuneOptions]
    lrs: Sequence[float]
    seeds: Sequence[int]
    tracking_uri: str | None = None
    experiment: str = "trelm-evaluation"
    tracks: bool = True

    @property
    def folder(self) -> Path:
        """Where records of finished runs are, beside the result."""
        return self.out.with_suffix(".runs")


def evaluate(asked: Evaluation, workers: Workers) -> dict[str, Any]:
    """Run an evaluation; collective. A command that was killed goes on where it was.

    Returns:
        the result as it was written: {task, model, data, predictions, ...} with, for a single task, its `metric`,
        `scores` (mean, std, values over the seeds, of the reported split), `splits`, `baseline`, `runs`; for GLUE the
        same by task under `tasks`, and the `average` of the paper's Table 3.

    Raises:
        UserError: model, data or options do not fit, or another process writes the same result.
    """
    first = workers.rank == 0
    workers.all_agree(lambda: check_not_another(asked.out, asked.name, asked.model) if first else None)
    model = workers.all_agree(lambda: open_pretrained(asked.model))
    # All tasks are read before the first is trained for: a mistake in the last must not show after hours.
    tunings = workers.all_agree(lambda: _prepare(asked, model, workers))
    with ExitStack() as held:
        workers.all_agree(lambda: held.enter_context(_alone(asked)) if first else None)
        tracking = workers.all_agree(lambda: _tracking(asked, enabled=first and asked.tracks))
        done: dict[str, TaskRuns] = {}
        try:
            for name, tuning in tunings.items():
                done[name] = run_task(tuning, model.digest, asked.lrs, asked.seeds, asked.folder, tracking)
                result = _result(asked, {task: runs.result for task, runs in done.items()})
                lines = [line for t, runs in done.items() for line in prediction_lines(tunings[t].task, runs.records)]
                # After each task, so that nothing is lost of those that are done.
                workers.all_agree(partial(_write, result, lines, asked.out if first else None))
        except BaseException:
            tracking.failed()
            raise
        tracking.finished(_summary(result))
    return result


def _write(result: dict[str, Any], lines: list[dict[str, Any]], out: Path | None) -> None:
    if out is not None:
        write_predictions(lines, predictions_file(out))
        write_result(result, out)


def _prepare(asked: Evaluation, model: PretrainedFolder, workers: Workers) -> dict[str, FineTuning]:
    tasks = {name: read() for name, read in asked.tasks.items()}
    return {name: prepare_task(task, model, asked.options[name], workers) for name, task in tasks.items()}


def _alone(asked: Evaluation) -> AbstractContextManager[None]:
    try:
        asked.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {asked.folder} cannot be created: {error.strerror}") from None
    return lock(asked.folder / LOCK, f"--out: {asked.folder}")


def _tracking(asked: Evaluation, enabled: bool) -> TaskTracking:
    params = {
        "task": asked.name,
        "model": str(asked.model),
        "data": str(asked.data),
        "tasks": " ".join(asked.tasks),
        "lr": " ".join(f"{lr:g}" for lr in asked.lrs),
        "seeds": len(asked.seeds),
    }
    name = f"{asked.name} {asked.model.resolve().name}"
    return TaskTracking(asked.folder, asked.tracking_uri, asked.experiment, name, params, enabled)


def _result(asked: Evaluation, by_task: dict[str, dict[str, Any]]) -> dict[str, Any]:
    about = {
        "task": asked.name,
        "model": str(asked.model),
        "data": str(asked.data),
        "seeds": list(asked.seeds),
        "predictions": predictions_file(asked.out).name,
    }
    if asked.name != "glue":
        return about | by_task[asked.name]
    return about | {"average": average(by_task), "tasks": by_task}


def average(by_task: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Average GLUE's numbers as the paper's Table 3: each task's own metric, MNLI's two dev splits apart.

    Returns:
        the spread over seeds, and `numbers`: how many were averaged; the paper has nine.
    """
    values = [split[result["metric"]]["values"] for result in by_task.values() for split in result["splits"].values()]
    return spread([sum(of_seed) / len(of_seed) for of_seed in zip(*values, strict=True)]) | {"numbers": len(values)}


def _summary(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers that stand for a result, by name: means, and standard deviations where there are any."""
    tasks = result.get("tasks", {result["task"]: result})
    found = {f"{name}/{metric}": value for name, of in tasks.items() for metric, value in of["scores"].items()}
    if "average" in result:
        found["average"] = result["average"]
    means = {name: value["mean"] for name, value in found.items()}
    return means | {f"{name}_std": value["std"] for name, value in found.items() if value["std"] is not None}
