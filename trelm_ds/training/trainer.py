"""Pre-training, top to bottom: model, engine, data, the loop, checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trelm_ds import faults, log
from trelm_ds.batches import StepBatches, StepLoader, StepReader
from trelm_ds.checkpoints import CheckpointInfo, Saver, choose_checkpoint, identity, load, versions
from trelm_ds.config import Config
from trelm_ds.corpus import TOKENIZER_FOLDER, TokenizerInfo
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.engine import build_engine, resolve_ds_config
from trelm_ds.errors import CommonError, RankError, UserError
from trelm_ds.files import lock
from trelm_ds.keyed_random import keyed_bits
from trelm_ds.progress import ProgressBar
from trelm_ds.run_folder import LOCK, checkpoints_folder, committed
from trelm_ds.stopping import StopRequests, StopSignals, exit_code
from trelm_ds.tracking import Journal, SystemMetrics
from trelm_ds.training.first_failure import first_failure_speaks
from trelm_ds.training.guards import GRADIENT, LOSS, Guard, gradient_norm
from trelm_ds.training.knowledge import StepKnowledge, open_knowledge
from trelm_ds.training.metrics import Window, summary
from trelm_ds.training.routing import Routing
from trelm_ds.training.setup import open_run, restrict, warn_of_nothing, with_sizes
from trelm_ds.training.watchdog import Watchdog

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trelm_ds.model import MaskedLanguageModel

_DROPOUT = 21  # sets this random stream's key apart from others


def pretrain(config: Config, data: str, run: Path) -> int:
    """Trains to `trainer.max_steps` or until something asks to stop; collective over the ranks that torchrun started.

    Args:
        config: checked settings.
        data: dataset of `trelm prepare`: a folder or an fsspec URL.
        run: folder for checkpoints, metrics and the resolved configuration; a run found there is continued.

    Returns:
        0 when all steps are done. When stopped, after a checkpoint: 128 + the signal's number, 75 at
        `trainer.max_minutes`, 130 by the stop file.

    Raises:
        UserError: settings, dataset and run folder do not fit together.
    """
    ranks = connect()
    try:
        watchdog = Watchdog(ranks, run, config.guards.hang_minutes)
        with first_failure_speaks(), StopSignals() as signals, watchdog:
            code = Trainer(config, data, run, ranks, signals, watchdog).train()
    except CommonError:
        disconnect()
        raise
    disconnect()  # not after a failure of one rank: it would wait for the others
    return code


class Trainer:
    """One run on one rank; until `train` has ended, other processes are kept out of the run folder.

    Raises:
        UserError: settings, dataset and run folder do not fit together; another process trains there.
    """

    def __init__(
        self,
        config: Config,
        data: str,
        run: Path,
        ranks: Ranks,
        signals: StopSignals,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.config, self.run, self.ranks = config, run, ranks
        self.watchdog = watchdog or Watchdog(ranks, run, 0)
        self.requests = StopRequests(signals, run, config.trainer.max_minutes, watch_file=ranks.rank == 0)
        self.ds_config = resolve_ds_config(config, ranks.world_size)
        # Nodes may see different files, so all ranks hear of what any of them misses.
        self.steps, model = ranks.all_agree(lambda: open_run(config, data, ranks))
        self.config = config = with_sizes(config, model.config)
        self.identity = identity(config, model.config, self.steps.identity)
        self.held = contextlib.ExitStack()  # keeps other processes out of the run folder
        ranks.all_agree(self._take_folder)  # before its checkpoints are looked at
        try:
            self._open(model, self._find_checkpoint())
        except BaseException:
            self.held.close()
            raise

    def _open(self, model: MaskedLanguageModel, resumed: tuple[Path, CheckpointInfo] | None) -> None:
        """Builds everything that trains, as it starts or as the checkpoint has it."""
        config, run, ranks = self.config, self.run, self.ranks
        info = TokenizerInfo(**self.steps.reader.manifest.tokenizer)
        ranks.all_agree(lambda: restrict(model, config))
        self.engine: DeepSpeedEngine
        self.engine, self.optimizer = build_engine(model, config, self.ds_config, ranks.device)
        self.guard = Guard(config.guards, run, writes=ranks.rank == 0)
        self.routing = Routing(config, model.config, ranks) if config.routes else None
        self.knowledge = open_knowledge(config, self.steps.annotator, info, model.config.hidden_size, ranks)
        if ranks.rank == 0:
            warn_of_nothing(config, self.steps.annotator)
        # theta of Eq. 3; without assessing there is nothing to share the loss with.
        asks = self.steps.annotator is not None and self.steps.annotator.asks
        self.mlm_weight = config.cka.mlm_weight if asks else 1.0
        self.step, self.mlflow_key = 0, ""
        if resumed is not None:
            self._resume(*resumed)
        elif self.knowledge is not None:
            self.knowledge.start(self.engine)
        loader = StepLoader(self.steps, self.step, config.trainer.max_steps, config.loader.workers)
        self.reader = StepReader(loader, self.steps.substitution, run, ranks)
        self.saved_step = self.step if committed(run) else None
        parts = [part for part in (self.knowledge, self.routing) if part is not None]
        tokenizer = self.steps.reader.storage.folder / TOKENIZER_FOLDER
        self.saver = Saver(self.engine, run, tokenizer, config.trainer, ranks, parts)
        self.window = Window()
        self.save_due, self.finite = False, True  # the last step's numbers
        self.lr = self.memory_lambda = 0.0
        self.grad_norm: float | None = None  # where DeepSpeed keeps none

    def _resume(self, path: Path, info: CheckpointInfo) -> None:
        """Takes a checkpoint's state up."""
        load(self.engine, path, info, self.ranks)
        if (knowledge := self.knowledge) is not None:
            self.ranks.all_agree(lambda: knowledge.load(path))
        if (routing := self.routing) is not None:
            self.ranks.all_agree(lambda: routing.load(path, self.engine.module))
        self.step = info.step
        if path.parent == checkpoints_folder(self.run):  # a branch is a run of its own
            self.mlflow_key = info.mlflow
        self.guard.load(info.guard, self.step)
        if info.order != self._order_state():
            raise UserError(f"{path}: its reading position is not that of step {self.step}; use another --out")
        if self.step > (last := self.config.trainer.max_steps):
            raise UserError(f"trainer.max_steps: is {last}, {self.run} is at step {self.step} already")

    def _order_state(self) -> dict[str, Any]:
        """Where reading goes on after `self.step` steps; small, and found without reading anything."""
        state = self.steps.order.state(self.step * self.config.trainer.global_batch_size)
        return state | {"tail": self.config.loader.tail, "dataset": self.identity["dataset"]}

    @property
    def _zero_stage(self) -> int:
        return int(self.ds_config.get("zero_optimization", {}).get("stage", 0))

    def _find_checkpoint(self) -> tuple[Path, CheckpointInfo] | None:
        """The checkpoint to continue from, found and verified by rank 0 for all."""

        def find() -> tuple[Path, CheckpointInfo] | None:
            first = self.ranks.rank == 0
            return choose_checkpoint(self.config.trainer.resume, self.run, self.identity) if first else None

        return self.ranks.from_first(self.ranks.all_agree(find))

    def train(self) -> int:
        """Trains; returns the exit code.

        Raises:
            UserError: the run folder cannot be written, too much of the dataset is damaged, or too many steps were
                skipped.
        """
        self.system = SystemMetrics(self.config.tracking.system_metrics_every_s, self.run, self.ranks)
        self.held.callback(self.system.close)
        with self.held:
            return self._loop()

    def _take_folder(self) -> None:
        """Makes the run folder and keeps other runs out of it."""
        if self.ranks.rank:
            return
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(lock(self.run / LOCK, f"--out: {self.run}"))
        except OSError as error:
            raise UserError(f"--out: cannot write into {self.run}: {error.strerror}") from None

    def _loop(self) -> int:
        first_rank = self.ranks.rank == 0
        journal = self.ranks.all_agree(lambda: self._open_journal() if first_rank else None)
        total, every = self.config.trainer.max_steps, self.config.trainer
        since, stop = time.monotonic(), 0
        self.engine.train()
        try:
            with ProgressBar("pretrain", total, self.step, enabled=first_rank) as bar:
                while self.step < total and not stop:
                    stop = self._train_step()
                    faults.reach("step-done")
                    note = ""
                    due = self.step % every.log_every == 0 or self.step == total or stop
                    if due:
                        values, since = self._summary(since), time.monotonic()
                        if journal:
                            journal.log(self.step, values)
                        faults.reach("log-written")
                        note = f"loss {values['loss']:.3f}  {values['tokens_per_s']:,.0f} tokens/s"
                    bar.advance(note=note)
                    self.save_due |= self.step % every.checkpoint_every == 0
                    # After a step without a finite loss weights may be beyond saving: sound checkpoints must not give
                    # way to theirs. The end is saved all the same, or the same batch would end every new start.
                    if (self.save_due and self.finite) or self.step == total or stop:
                        self._save()
            with self.watchdog.patient():
                self.saver.settle()
            if self.saver.failed:
                raise CommonError(f"{self.saver.failed}; mend that and start the same command again")
        except BaseException as error:
            self.saver.abandon()
            if journal:
                journal.fail()
            if isinstance(error, UserError) and not isinstance(error, CommonError):
                raise RankError(f"rank {self.ranks.rank}, step {self.step}: {error}") from None
            raise
        finally:
            self.reader.loader.close()
        with self.watchdog.patient():  # MLflow may not answer
            if journal:
                journal.finish(self.step, stop)
            # A rank that leaves early makes launchers end the others, rank 0's last words with them.
            self.ranks.barrier()
        return exit_code(stop) if stop and self.step < total else 0

    def _open_journal(self) -> Journal:
        notes = []
        if self.knowledge is not None:
            sizes = ", ".join(f"{size:,} {name}" for name, size in self.knowledge.describe().items())
            notes.append(f"knowledge: {sizes}")
        if self.steps.annotator is not None:
            notes.append(f"selection: {self.steps.annotator.index.describe_importance()}")
        if self.routing is not None:
            notes.append(f"routing: {self.routing.describe()}")
        about, hosts = self._about(), self.system.hosts
        try:
            journal = Journal(self.config, self.ds_config, self.run, self.step, about, hosts, self.mlflow_key, notes)
        except OSError as error:
            raise UserError(f"--out: cannot write into {self.run}: {error.strerror}") from None
        self.mlflow_key = journal.mlflow_key or self.mlflow_key
        return journal

    def _about(self) -> dict[str, Any]:
        """What the configuration does not say of the run."""
        sizes = {} if self.knowledge is None else self.knowledge.describe()
        return {
            "dataset.place": self.steps.reader.storage.place,
            "dataset.fingerprint": self.identity["dataset"],
            "world_size": self.ranks.world_size,
            "zero_stage": self._zero_stage,
            **{f"versions.{name}": version for name, version in versions().items()},
            **{f"knowledge.{name}": size for name, size in sizes.items()},
        }

    def _train_step(self) -> int:
        """One optimizer step; returns the reason to stop after it, or 0."""
        read, masked, asked = self.reader.read(self.step)
        steps = int(self.ranks.rank == 0)  # summed over ranks later
        self.window.count({"corrupted": read.substituted, "steps": steps} | read.counts)
        faults.reach("step-read")
        step_knowledge = self._open_knowledge(read)
        if self.routing is not None and step_knowledge is not None:
            self.routing.refresh(self.engine, read, step_knowledge, self.step)
            faults.reach("routing-refreshed")
        window = Window()
        loss = self._accumulate(read, step_knowledge, window, masked, asked)
        faults.reach("step-backward")
        with self.watchdog.patient():
            self.saver.settle()  # what it writes changes from here on
        taken = self._update(loss)
        faults.reach("step-updated")
        if step_knowledge and taken:
            window.count(step_knowledge.close())
        self.window.absorb(window, taken)
        self.step += 1
        self.watchdog.stepped(self.step)
        return self.ranks.max(self.requests.reason())

    def _accumulate(
        self, read: StepBatches, step_knowledge: StepKnowledge | None, window: Window, masked: float, asked: float
    ) -> torch.Tensor:
        """Forward and backward passes of a step; returns this rank's part of its loss, times the number of ranks.

        Args:
            read: this rank's part of the step.
            step_knowledge: of the step.
            window: counts it.
            masked, asked: tokens of the global batch to predict, and of answers.
        """
        # DeepSpeed averages over ranks. Undone by these factors, the step's losses are means over all masked tokens,
        # and over all tokens of answers, of the global batch, whatever the number of ranks.
        mlm_factor = self.mlm_weight * self.ranks.world_size / max(1.0, masked)
        cka_factor = (1 - self.mlm_weight) * self.ranks.world_size / max(1.0, asked)
        total, last = torch.zeros((), device=self.ranks.device), len(read.micro_batches) - 1
        for index, stored in enumerate(read.micro_batches):
            batch = stored.to(self.ranks.device)
            self._seed_dropout(index)
            # Steps differ in their number of micro-batches, so the engine has to be told instead of counting them.
            self.engine.set_gradient_accumulation_boundary(index == last)
            known = step_knowledge.inputs(batch) if step_knowledge else (None, None)
            output = self.engine(*batch[:5], *known, batch.queries)
            loss = output.mlm_loss * mlm_factor
            if output.cka_loss is not None:
                loss = loss + output.cka_loss * cka_factor
            self.engine.backward(loss, scale_wrt_gas=False)
            if index < last:
                self.engine.step()
            self.watchdog.beat()
            if step_knowledge:
                step_knowledge.observe(batch, stored.items and stored.items.window, output.states)
            total += loss.detach()
            window.add(batch, output)
        return total

    def _update(self, loss: torch.Tensor) -> bool:
        """Updates the weights unless loss or gradient speaks against it; returns whether it did.

        Args:
            loss: of `_accumulate`.
        """
        self.lr = self.engine.get_lr()[0]  # of this step; afterwards it is the next one's
        mean = self.ranks.sum(float(loss))[0] / self.ranks.world_size
        reason = self.guard.judge(mean)
        if self._zero_stage == 0 and self.config.trainer.precision == "fp32":
            self.grad_norm = gradient_norm(self.optimizer)
            if reason is None and not math.isfinite(self.grad_norm):
                reason = GRADIENT
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

    def _open_knowledge(self, read: StepBatches) -> StepKnowledge | None:
        """What the step takes from vector table and memory bank; its look-ups have begun."""
        if self.knowledge is None:
            return None
        if self.knowledge.refresh_due(self.step):
            with self.watchdog.patient():
                self.saver.settle()  # the vectors are in the checkpoint
                self.knowledge.refresh(self.engine)
        epoch = self.step * self.config.trainer.global_batch_size // self.steps.order.epoch_samples
        self.memory_lambda = self.knowledge.memory_lambda(self.step, epoch)
        return self.knowledge.open_step(read, self.memory_lambda)

    def _seed_dropout(self, index: int) -> None:
        """Dropout is a function of (seed, step, micro-batch, rank), so a resumed run needs no stored state."""
        key = keyed_bits(self.config.trainer.seed, _DROPOUT, self.step, index, self.ranks.rank)
        torch.manual_seed(int(key) >> 1)

    def _summary(self, since: float) -> dict[str, float]:
        """The metrics since the last log point, over all ranks."""
        window, self.window = self.window, Window()
        pause, self.saver.pause_s = self.saver.pause_s, 0.0
        seconds = time.monotonic() - since - pause  # waiting for checkpoints is no training
        metrics = summary(window.totals(self.ranks), self.mlm_weight, seconds)
        norm = self.engine.get_global_grad_norm() if self.grad_norm is None else self.grad_norm
        if norm is not None:
            metrics["grad_norm"] = float(norm)
        metrics |= {"skipped_steps": float(self.guard.count), "checkpoint_wait_s": pause}
        if self.knowledge is not None and (bank := self.knowledge.bank) is not None:
            rows, filled = self.ranks.sum(len(bank.contexts.local), bank.filled_rows)
            metrics |= {"memory_lambda": self.memory_lambda, "memory_filled": filled / max(1.0, rows)}
        if self.routing is not None:
            metrics |= self.routing.metrics(seconds)
        epoch = self.step * self.config.trainer.global_batch_size / self.steps.order.epoch_samples
        return metrics | {"lr": self.lr, "epoch": epoch} | self.system.means()

    def _save(self) -> None:
        if self.step == self.saved_step:
            return
        self.save_due = False
        self.saved_step = self.step
        info = CheckpointInfo(
            step=self.step,
            world_size=self.ranks.world_size,
            zero_stage=self._zero_stage,
            identity=self.identity,
            order=self._order_state(),
            guard=self.guard.state(),
            mlflow=self.mlflow_key,  # rank 0's, which writes the manifest
        )
        with self.watchdog.patient():
            self.saver.begin(info)
