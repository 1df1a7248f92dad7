"""Record a run for its users: settings, metrics, MLflow, the loss curve, and a line at its start and end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trelm_ds import log
from trelm_ds.config import Config, public, to_yaml
from trelm_ds.files import append_line, write_atomically
from trelm_ds.run_folder import CONFIG, METRICS, committed, read_metrics
from trelm_ds.stopping import describe
from trelm_ds.tracking.mlflow_run import MlflowRun, source_tags
from trelm_ds.tracking.plot import plot_loss


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


class Journal:
    """The record of one run, kept by rank 0.

    Args:
        ds_config: the resolved DeepSpeed configuration.
        run: the run folder.
        step: optimizer steps done before this process.
        about: facts that the configuration does not state, logged as MLflow parameters.
        hosts: names of the nodes.
        mlflow_key: key of the run in MLflow according to its checkpoint; "" without one.
        notes: lines to log at the start.

    Raises:
        UserError: the tracking address cannot work.
        OSError: the run folder cannot be written.
    """

    def __init__(
        self,
        config: Config,
        ds_config: dict[str, Any],
        run: Path,
        step: int,
        about: dict[str, Any],
        hosts: list[str],
        mlflow_key: str,
        notes: list[str],
    ) -> None:
        self._config, self._run = config, run
        self._warned = self._warned_of_disk = False
        write_atomically(run / CONFIG, to_yaml(public(config)))
        write_atomically(run / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")
        for note in [*notes, *([f"continuing {run} at step {step}"] if step else [])]:
            log.info(note)
        self._metrics = MetricsFile(run, step)
        self._tracker = None
        if config.tracking.enabled:
            self._tracker = MlflowRun(config, run, step, about, source_tags(hosts), mlflow_key)
            for name in (CONFIG, "ds_config.json"):
                self._tracker.log_file(name)

    @property
    def mlflow_key(self) -> str:
        """Key of the run in MLflow, to be stored in checkpoints; "" without MLflow."""
        return self._tracker.key if self._tracker else ""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record a log point."""
        if values.get("facts_per_sequence") == 0 and not self._warned:
            self._warned = True
            log.warning(
                f"cka: no fact was asked in the {self._config.trainer.log_every} steps before step {step}; chosen "
                "entities have no triple whose names the tokenizer can write, or max_token_share is too small"
            )
        try:
            self._metrics.log(step, values)
        except OSError as error:  # a full disk must not stop training
            if not self._warned_of_disk:
                log.warning(f"{self._run / METRICS}: cannot be written ({error.strerror})")
            self._warned_of_disk = True
        if self._tracker:
            self._tracker.log(step, values)

    def fail(self) -> None:
        """Record that the run has ended with an error."""
        if self._tracker:
            self._tracker.end("FAILED")

    def finish(self, step: int, stop: int) -> None:
        """Record the end of the run: draw the loss curve, close MLflow, log a last line.

        Args:
            step: optimizer steps done.
            stop: why it stops early, as `StopRequests.reason` returns it; 0 if it does not.
        """
        stopped = stop and step < self._config.trainer.max_steps
        try:
            if read_metrics(self._run):
                plot_loss(self._run, self._run / "loss.png")
                if self._tracker:
                    self._tracker.log_file("loss.png")
        except OSError as error:  # a full disk; the checkpoint is what counts
            log.warning(f"no loss curve: {error}")
        if self._tracker:
            self._tracker.end("KILLED" if stopped else "FINISHED")
        what = f"stopped by {describe(stop)}; the same command continues" if stopped else "done"
        last = next(iter(committed(self._run)), "no checkpoint")
        log.info(f"{what}: step {step}, {last}")
