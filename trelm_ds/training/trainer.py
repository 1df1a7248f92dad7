"""The training loop: read a step, pass forward and backward, update, log, save."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from trelm_ds import faults, log
from trelm_ds.batches import DevicePrefetcher, Step, StepDataset, StepReader, mask_rate
from trelm_ds.checkpoints import CheckpointInfo, Saver
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks
from trelm_ds.engine import SkippableAdamW, decay_of, mark_gradients
from trelm_ds.errors import CommonError, RankError, UserError
from trelm_ds.keyed_random import Stream, keyed_bits
from trelm_ds.launched import leave_exit_code
from trelm_ds.progress import ProgressBar
from trelm_ds.run_folder import committed
from trelm_ds.stopping import StopRequests, exit_code
from trelm_ds.tracking import SystemMetrics
from trelm_ds.training.component import Component
from trelm_ds.training.guards import GRADIENT, LOSS, Guard, gradient_norm
from trelm_ds.training.metrics import Window, summary
from trelm_ds.training.speed import rate_in_words
from trelm_ds.training.watchdog import Watchdog

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Part = TypeVar("Part", bound=Component)


class Trainer:
    """The loop of one run on one rank; `build_run` makes it.

    Args:
        config: settings, with the model's sizes as they are.
        run: the run folder.
        ranks: this process among the others.
        steps: the dataset as a sequence of steps.
        reader: reader of this rank's part of each step, in order from `first_step` on.
        engine: DeepSpeed's engine around the model.
        optimizer: our optimizer within it.
        weights: weight of each objective in the loss, "mlm" first.
        guard: judge of whether a step is taken; one of the components.
        components: optional parts, in the order in which their hooks are called.
        saver: writer of checkpoints.
        system: sampler of the nodes' load.
        identity: values that a continuation of this run must share.
        first_step: number of steps done before.
        requests: stop requests: signals, time limit, stop file.
        watchdog: watchdog that is told of every sign of life.
        held: resources to release at the end, the run folder's lock above all.
    """

    def __init__(
        self,
        *,
        config: Config,
        run: Path,
        ranks: Ranks,
        steps: StepDataset,
        reader: StepReader,
        engine: DeepSpeedEngine,
        optimizer: SkippableAdamW,
        weights: dict[str, float],
        guard: Guard,
        components: list[Component],
        saver: Saver,
        system: SystemMetrics,
        identity: dict[str, Any],
        first_step: int,
        requests: StopRequests,
        watchdog: Watchdog,
        held: contextlib.ExitStack,
    ) -> None:
        self.config, self.run, self.ranks, self.identity = config, run, ranks, identity
        self.steps, self.reader, self.engine, self.optimizer = steps, reader, engine, optimizer
        self.weights, self.guard, self.components = weights, guard, components
        self.saver, self.system, self.requests, self.watchdog, self.held = saver, system, requests, watchdog, held
        self.on_device = DevicePrefetcher(ranks.device)
        self.step = first_step
        self.saved_step = first_step if committed(run) else None
        self.window = Window()
        self.save_due = False
        self.finite = True  # loss and gradient of the last step
        self.lr = 0.0
        self.grad_norm: float | None = None  # only under ZeRO 0 in fp32, where DeepSpeed computes none
        self.zero_stage: int = engine.zero_optimization_stage()

    def component(self, kind: type[Part]) -> Part:
        """Return the run's component of a kind.

        Raises:
            LookupError: it has none.
        """
        for part in self.components:
            if isinstance(part, kind):
                return part
        raise LookupError(f"the run has no {kind.__name__}")

    def train(self) -> int:
        """Train to the last step or until something asks to stop; return the exit code.

        Raises:
            UserError: the run folder cannot be written, too much of the dataset is damaged, or too many steps were
                skipped.
        """
        with self.held:
            try:
                self.ranks.all_agree(self._begin)
                self.engine.train()
                stop = self._loop()
            except BaseException as error:
                self.saver.abandon()
                self._end(0, failed=True)
                if isinstance(error, UserError) and not isinstance(error, CommonError):
                    raise RankError(f"rank {self.ranks.rank}, step {self.step}: {error}") from None
                raise
            finally:
                self.reader.loader.close()
            with self.watchdog.patient():  # MLflow may not answer
                self._end(stop, failed=False)
                # A rank that leaves early makes launchers end the others, rank 0's last words with them.
                self.ranks.barrier()
                code = exit_code(stop) if stop and self.step < self.config.trainer.max_steps else 0
                leave_exit_code(code)
                self.requests.answered()  # where a rank is lost before, the next start must hear it as well
        return code

    def _begin(self) -> None:
        for component in self.components:
            component.begin()

    def _end(self, stop: int, failed: bool) -> None:
        for component in self.components:
            component.end(self.step, stop, failed)

    def _loop(self) -> int:
        """Take steps, log and save; return what asked for the end, or 0."""
        settings = self.config.trainer
        total, since, stop = settings.max_steps, time.monotonic(), 0
        with ProgressBar("pretrain", total, self.step, enabled=self.ranks.rank == 0) as bar:
            while self.step < total and not stop:
                stop = self.train_step()
                faults.reach("step-done")
                last = self.step == total or bool(stop)
                note = ""
                if last or self.step % settings.log_every == 0:
                    note, since = self._log(since), time.monotonic()
                bar.advance(note=note)
                self.save_due |= self.step % settings.checkpoint_every == 0
                # After a step without a finite loss weights may be beyond saving: sound checkpoints must not give
                # way to theirs. The end is saved all the same, or the same batch would end every new start.
                if last or (self.save_due and self.finite):
                    self.save()
        self._settle()
        if self.saver.failed:
            raise CommonError(f"{self.saver.failed}; mend that and start the same command again")
        return stop

    def train_step(self) -> int:
        """Take one optimizer step; return the reason to stop after it, or 0."""
        for component in self.components:
            component.before_read(self.step)
        step = self.reader.read(self.step)
        # Counted once over all ranks: the window is summed over them.
        self.window.count(step.counts | {"steps": int(self.ranks.data.rank == 0)})
        faults.reach("step-read")
        self._refresh()
        for component in self.components:
            component.before_step(step, self.step)
        of_step = Window()
        loss = self.accumulate(step, of_step)
        faults.reach("step-backward")
        self._settle()  # a checkpoint may still be written from what changes from here on
        taken = self.update(loss)
        faults.reach("step-updated")
        for component in self.components:
            of_step.count(component.after_step(taken))
        self.window.absorb(of_step, taken)
        self.step += 1
        self.watchdog.stepped(self.step)
        return self.ranks.max(self.requests.reason())

    def _refresh(self) -> None:
        due = [component for component in self.components if component.refresh_due(self.step)]
        if not due:
            return
        with self.watchdog.patient():
            self.saver.settle()  # what they compute anew is in the checkpoint
            for component in due:
                component.refresh()

    def accumulate(self, step: Step, window: Window) -> torch.Tensor:
        """Pass forward and backward through all micro-batches.

        Args:
            step: this rank's part of it.
            window: counts what the model made of it.

        Returns:
            this rank's part of the step's loss, times the number of ranks, [] float32.
        """
        # DeepSpeed averages over ranks. Undone by these factors, an objective's loss is the mean over its targets in
        # the global batch, whatever the number of ranks.
        factors = {
            name: weight * self.ranks.data.world_size / max(1.0, step.targets[name])
            for name, weight in self.weights.items()
        }
        total, last = torch.zeros((), device=self.ranks.device), len(step.micro_batches) - 1
        for index, batch in enumerate(self.on_device(step.micro_batches)):
            self._seed_dropout(index)
            # Steps differ in their number of micro-batches, so the engine has to be told instead of counting them.
            self.engine.set_gradient_accumulation_boundary(index == last)
            inputs = {name: value for part in self.components for name, value in part.model_inputs().items()}
            output = self.engine(batch, **inputs)
            losses = [loss * factors[name] for name, loss in output.losses.items()]
            loss = sum(losses[1:], losses[0])
            self.engine.backward(loss, scale_wrt_gas=False)  # the factors are complete
            if index < last:
                self.engine.step()  # the last one is called by `update`, which decides whether it changes anything
            self.watchdog.beat()
            for component in self.components:
                component.after_micro_batch(batch, output)
            total += loss.detach()
            window.add(batch, output)
        return total

    def _seed_dropout(self, index: int) -> None:
        """Make dropout a function of (seed, step, micro-batch, rank), so that a resumed run needs no stored state."""
        # Ranks that share a model drop the same: their states between the layers are the same.
        key = keyed_bits(self.config.trainer.seed, Stream.DROPOUT, self.step, index, self.ranks.data.rank)
        torch.manual_seed(int(key) >> 1)

    def update(self, loss: torch.Tensor) -> bool:
        """Update the weights unless loss or gradient speaks against it; return whether it was done.

        Args:
            loss: as `accumulate` returns it.
        """
        self.lr = self.engine.get_lr()[0]  # of this step; afterwards it is the next one's
        mean = self.ranks.sum(float(loss))[0] / self.ranks.world_size
        reason = self.guard.judge(mean)
        if self.zero_stage == 0 and self.config.trainer.precision == "fp32":
            self.grad_norm = gradient_norm(self.optimizer, self.ranks.tensor)
            if reason is None and not math.isfinite(self.grad_norm):
                reason = GRADIENT
        if self.ranks.tensor is not None:
            mark_gradients(self.engine.module)
        self.optimizer.skips = reason is not None
        self.engine.step()
        if not self.engine.was_step_applied():  # DeepSpeed has met a gradient that is not finite
            reason = reason or GRADIENT
            self.engine.lr_scheduler.step()  # the schedule counts steps, taken or not
        self.finite = reason not in (LOSS, GRADIENT)
        if reason is None:
            self.guard.took(mean)
            return True
        log.warning_rank0(f"step {self.step + 1} skipped: {reason} (loss {mean:.4g})")
        batch_size = self.config.trainer.global_batch_size
        _, samples = self.steps.order.samples(self.step * batch_size, batch_size)
        self.guard.skipped(self.step + 1, reason, mean, samples.tolist())
        return False

    def _log(self, since: float) -> str:
        """Log what was measured after `since`; return it in a few words."""
        metrics = self._take_metrics(since)
        for component in self.components:
            component.log(self.step, metrics)
        faults.reach("log-written")
        held_out = f"  held-out mlm {metrics['eval_mlm_loss']:.3f}" if "eval_mlm_loss" in metrics else ""
        return f"loss {metrics['loss']:.3f}{held_out}  {rate_in_words(metrics, self.ranks.world_size)}"

    def _take_metrics(self, since: float) -> dict[str, float]:
        """Measure over all ranks what came since the last log point, and begin the next window."""
        window, self.window = self.window, Window()
        pause, self.saver.pause_s = self.saver.pause_s, 0.0
        seconds = time.monotonic() - since - pause  # waiting for checkpoints is no training
        metrics = summary(window.totals(self.ranks.data), self.weights, seconds)
        norm = self.engine.get_global_grad_norm() if self.grad_norm is None else self.grad_norm
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        if isinstance(self.config.masking.probability, tuple):  # the last step's, as the learning rate is
            metrics["mask_rate"] = mask_rate(self.config.masking, self.step - 1, self.config.trainer.max_steps)
        with self.watchdog.patient():  # an evaluation may take minutes
            for component in self.components:
                metrics |= component.metrics(seconds)
        epoch = self.step * self.config.trainer.global_batch_size / self.steps.order.epoch_samples
        return metrics | {"checkpoint_wait_s": pause, "lr": self.lr, "epoch": epoch} | self.system.means()

    def save(self) -> None:
        """Begin a checkpoint, unless this step has one."""
        if self.step == self.saved_step:
            return
        self.save_due = False
        self.saved_step = self.step
        decay = decay_of(self.config)
        fields = {name: value for part in self.components for name, value in part.manifest().items()}
        info = CheckpointInfo(
            step=self.step,
            world_size=self.ranks.world_size,
            tensor_parallel=1 if self.ranks.tensor is None else self.ranks.tensor.degree,
            zero_stage=self.zero_stage,
            identity=self.identity,
            order=reading_position(self.config, self.steps, self.step),
            decay=None if decay is None else list(decay),
            **fields,
        )
        with self.watchdog.patient():
            self.saver.begin(info)

    def _settle(self) -> None:
        """Wait until the checkpoint that is being written is committed."""
        with self.watchdog.patient():
            self.saver.settle()


def reading_position(config: Config, steps: StepDataset, steps_done: int) -> dict[str, Any]:
    """Say where reading goes on after `steps_done` steps; small, and found without reading anything."""
    state = steps.order.state(steps_done * config.trainer.global_batch_size)
    return state | {"tail": config.loader.tail, "dataset": steps.reader.manifest.fingerprint}
