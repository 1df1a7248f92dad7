"""Tuning: the plan's best choices are run for some steps, one after another, and the fastest is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trelm_ds import log
from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.planning.candidates import Candidates
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import CPU, GIB
from trelm_ds.planning.node import device_here, hardware, this_node
from trelm_ds.planning.plan import Plan, Planned, Planner
from trelm_ds.planning.samples import open_for_planning
from trelm_ds.planning.trial import Limits, Outcome, Stopped, kill_trials
from trelm_ds.planning.trials import Result, Trials, check_same, identity_of, remember, remembered_device
from trelm_ds.planning.tuning_in_mlflow import TuneTracking
from trelm_ds.progress import ProgressBar
from trelm_ds.run_folder import CONFIG, LOCK, foreign_content


class TuneOptions(NamedTuple):
    """How to tune.

    Attributes:
        data: dataset of `trelm prepare`.
        folder: for trials and results.
        budget_minutes: of all trials together, those of earlier starts included; the last one may end later.
        trials: at most.
        steps, trial_minutes: of each.
        gpu: "this", which is measured, or a known one whose figures count.
        ranks: processes.
        memory: bytes of each process on a CPU; None for its part of what there is.
    """

    data: str
    folder: Path
    budget_minutes: float
    trials: int
    steps: int
    trial_minutes: float
    gpu: str
    ranks: int
    memory: int | None


class Tuned(NamedTuple):
    """What tuning has found.

    Attributes:
        results: of the trials, those of earlier starts first; before them the choice configured where it was not tried.
        beyond: rows of the plan that need far more memory than there is, and were not tried.
        left: rows that might have been tried as well.
        configured: the choice that the settings have.
        complete: whether nothing has stopped it.
    """

    plan: Plan
    results: list[Result]
    beyond: list[Planned]
    left: int
    configured: Choice
    complete: bool

    @property
    def tried(self) -> list[Result]:
        """The trials, however they went."""
        return [result for result in self.results if result.outcome.status != "skipped"]

    @property
    def done(self) -> list[Result]:
        """The trials that went well."""
        return [result for result in self.results if result.outcome.status == "ok"]

    @property
    def best(self) -> Result | None:
        """The fastest."""
        return max(self.done, key=lambda result: result.outcome.tokens_per_s or 0.0, default=None)


@contextlib.contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Make the folder, keep other processes out of it, and end what a killed one has left running.

    Raises:
        UserError: it is something else, or in use, or cannot be written.
    """
    what = "a run" if (folder / CONFIG).is_file() else foreign_content(folder)
    if what:
        raise UserError(f"--out: {folder} is {what}; give a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError.because(f"--out: cannot write into {folder}: {error.strerror}", error) from None
    with lock(folder / LOCK, f"--out: {folder}"):
        kill_trials(str(folder.resolve()))
        yield


class Tuner:
    """Plans, then tries what `Candidates` says until the number or the budget is used up.

    Args:
        options: whose folder is `taken`.
        stopped: says whether something asks for the end.

    Attributes:
        configured: the choice that the settings have.
        trials: of the folder, which has the DeepSpeed files.

    Raises:
        UserError: settings, dataset, machine and folder do not fit together.
    """

    def __init__(self, config: Config, options: TuneOptions, stopped: Callable[[], object]) -> None:
        self._options, self._stopped = options, stopped
        data = open_for_planning(config, options.data)
        known = remembered_device(options.folder)
        device = device_here(options.gpu) if known is None else known[0]
        node = this_node(device, options.ranks, options.memory)
        self._planner = Planner(config, node, data)
        self.configured = self._planner.configured
        memory = node.device.memory if device.name == CPU else 0
        limits = Limits(options.steps, 60 * options.trial_minutes, memory)
        shared: dict[str, Any] = {
            "--data": data.steps.reader.manifest.fingerprint,
            "--gpu": options.gpu,
            "--ranks": options.ranks,
            "machine": hardware(),
        }
        if device.name == CPU:
            shared["threads of a process"] = torch.get_num_threads()
        identity = identity_of(config, self.configured, limits, shared)
        if known is None:
            remember(options.folder, device, identity)
        else:
            check_same(options.folder, known[1], identity)
        self.trials = Trials(
            config, options.folder, options.data, options.ranks, limits, self._planner.ds_config, identity
        )
        self._tracking = TuneTracking(config, options.folder, identity)

    def run(self) -> Tuned:
        """Plan, run trials or take their results of before, and return what was found until then if stopped.

        Raises:
            Stopped: while it planned.
        """
        results: list[Result] = []
        complete, candidates = False, None
        try:
            candidates = self._candidates()
            self._run(candidates, results)
            complete = True
        except Stopped:
            self._tracking.stopped(failed=False)
            if candidates is None:
                raise
        except BaseException:
            self._tracking.stopped(failed=True)
            raise
        left = len(candidates.left([result.tried for result in results]))
        results = [*self._configured_if_not_tried(candidates), *results]
        return Tuned(candidates.plan, results, candidates.beyond, left, self.configured, complete)

    def _candidates(self) -> Candidates:
        with ProgressBar("plan", None) as bar:

            def advance() -> None:
                bar.advance()
                if self._stopped():
                    raise Stopped

            return Candidates(self._planner.plan(advance), self.configured)

    def _run(self, candidates: Candidates, results: list[Result]) -> None:
        options = self._options
        # All of them, however many are asked for now: the best is the best that was measured, and they took their time.
        for one in candidates.rows.values():
            if (result := self.trials.kept(one)) is not None:
                self._tracking.known(result, self.trials.folder_of(one.choice))
                results.append(result)
        if results:
            log.info(f"{len(results)} trials were run before")
        number = max(len(results), min(options.trials, len(candidates.rows)))
        with ProgressBar("tune", number, initial=len(results)) as bar:
            while row := candidates.next([result.tried for result in results], options.trials):
                if sum(result.outcome.seconds for result in results) >= 60 * options.budget_minutes:
                    log.info(f"--budget-minutes {options.budget_minutes:g} are used up")
                    return
                results.append(self._tried(row, len(results) + 1))
                bar.advance(note=_in_words(results[-1]))

    def _tried(self, row: Planned, number: int) -> Result:
        assert row.memory is not None
        planned = f"planned {row.tokens_per_s:,.0f} tokens/s, {row.memory.peak / GIB:.2f} GiB"
        log.info(f"trial {number} of at most {self._options.trials}: {row.choice.name}, {planned}")
        self._tracking.begin(row, self.trials.folder_of(row.choice))
        result = self.trials.run(row, self._stopped)
        self._tracking.end(result)
        return result

    def _configured_if_not_tried(self, candidates: Candidates) -> list[Result]:
        """Return a result that says why the choice configured was none to be tried; nothing where it was."""
        if self.configured in candidates.rows:
            return []
        row = next((row for row in candidates.plan.rows if row.choice == self.configured), None)
        row = row or Planned(self.configured, f"cannot run on {self._options.ranks} processes")
        return [Result(row, Outcome("skipped", row.problem, 0, 0.0))]

    def finished(self, metrics: dict[str, float], files: list[str]) -> None:
        """Tell MLflow what was found, with files of the folder."""
        self._tracking.finished(metrics, files)


def _in_words(result: Result) -> str:
    outcome, name = result.outcome, result.choice.name
    if outcome.status == "ok":
        return f"{name}: {outcome.tokens_per_s:,.0f} tokens/s"
    return f"{name}: {outcome.status}"
