"""Record a run for its users: settings, metrics, MLflow, the loss curve, and a line at its start and end."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.config import Config, flatten, public, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.files import append_line, fsync_path, write_atomically
from trelm_ds.run_folder import CONFIG, METRICS, SPOOL, committed, read_metrics, tracking_uri
from trelm_ds.stopping import describe
from trelm_ds.tracking import MlflowRun, plot_loss, source_tags
from trelm_ds.training.component import Component


class Journal(Component):
    """Writes down how one run goes: settings, log points, its end; in its folder and, if enabled, in MLflow.

    Rank 0 alone has one.

    Args:
        ds_config: DeepSpeed's, resolved.
        steps_done: steps done before.
        parameters: what the configuration does not say, for MLflow.
        hosts: names of the nodes.
        mlflow_key: that the checkpoint has; "" without one.
        notes: lines to print at the start.
    """

    def __init__(
        self,
        config: Config,
        ds_config: dict[str, Any],
        run: Path,
        steps_done: int,
        parameters: dict[str, Any],
        hosts: list[str],
        mlflow_key: str,
        notes: list[str],
    ) -> None:
        self._config, self._ds_config, self._run, self._number = config, ds_config, run, steps_done
        self._parameters, self._hosts, self._notes = parameters, hosts, notes
        self._mlflow_key = mlflow_key
        self._warned = self._warned_of_disk = False
        self._tracker: MlflowRun | None = None

    def begin(self) -> None:
        """Write the settings down, print the notes, begin or continue the MLflow run.

        Raises:
            UserError: the run folder cannot be written, or the tracking address cannot work.
        """
        try:
            self._open()
        except OSError as error:
            raise UserError.because(f"--out: cannot write into {self._run}: {error.strerror}", error) from None

    def _open(self) -> None:
        config, run, steps_done = self._config, self._run, self._number
        write_atomically(run / CONFIG, to_yaml(public(config)))
        write_atomically(run / "ds_config.json", json.dumps(self._ds_config, indent=2) + "\n")
        for note in [*self._notes, *([f"continuing {run} at step {steps_done}"] if steps_done else [])]:
            log.info(note)
        self._metrics = MetricsFile(run, steps_done)
        if config.tracking.enabled:
            self._tracker = MlflowRun(
                run,
                tracking_uri(config, run),
                config.tracking.experiment,
                config.tracking.run_name or run.resolve().name,
                flatten(public(config)) | self._parameters,
                source_tags("pretrain", self._hosts),
                step=steps_done,
                key=self._mlflow_key,
            )
            self._mlflow_key = self._tracker.key
            for name in (CONFIG, "ds_config.json"):
                self._tracker.log_file(name)

    def manifest(self) -> dict[str, Any]:
        """Name the run in MLflow, so that a run folder without its spool goes on as the same run."""
        return {"mlflow": self._mlflow_key}

    def capture(self) -> None:
        """Have the log points on disk, and in the spool, before the checkpoint that continues from them is.

        There is no file in the checkpoint itself.
        """
        for name in (METRICS, SPOOL):
            with contextlib.suppress(OSError):
                fsync_path(self._run / name)

    def log(self, steps_done: int, metrics: dict[str, float]) -> None:
        """Write a log point."""
        if metrics.get("facts_per_sequence") == 0 and not self._warned:
            self._warned = True  # once: half of the loss may be one of nothing
            log.warning(
                f"cka: no fact was asked in the {self._config.trainer.log_every} steps before step {steps_done}; "
                "chosen entities have no triple whose names the tokenizer can write, or max_token_share is too small"
            )
        try:
            self._metrics.log(steps_done, metrics)
        except OSError as error:  # a full disk is no reason to stop training
            if not self._warned_of_disk:
                log.warning(f"{self._run / METRICS}: cannot be written ({error.strerror})")
            self._warned_of_disk = True
        if self._tracker:
            self._tracker.log(steps_done, metrics)

    def log_file(self, name: str) -> None:
        """Bring a file of the run folder to MLflow."""
        if self._tracker:
            self._tracker.log_file(name)

    def end(self, steps_done: int, stop: int, failed: bool) -> None:
        """Draw the loss curve, end the MLflow run, and say how training came to its end."""
        if failed:
            if self._tracker:
                self._tracker.end("FAILED")
            return
        stopped = bool(stop) and steps_done < self._config.trainer.max_steps
        try:
            if read_metrics(self._run):
                plot_loss(self._run, self._run / "loss.png")
                if self._tracker:
                    self._tracker.log_file("loss.png")
        except OSError as error:  # a full disk: the checkpoint is what counts
            log.warning(f"no loss curve: {error}")
        if self._tracker:
            self._tracker.end("KILLED" if stopped else "FINISHED")
        what = f"stopped by {describe(stop)}; the same command continues" if stopped else "done"
        last = next(iter(committed(self._run)), "no checkpoint")
        log.info(f"{what}: step {steps_done}, {last}")


class MetricsFile:
    """`metrics.jsonl`: one JSON object per log point.

    Opening it drops the points after `from_step`, the step that a resumed run continues from, since they come again.
    """

    def __init__(self, run: Path, from_step: int) -> None:
        self.path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= from_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a log point."""
        append_line(self.path, json.dumps({"step": step, **metrics}))
