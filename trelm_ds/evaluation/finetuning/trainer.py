"""Fine-tune one model on one task with one seed, and score it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trelm_ds.engine import parameter_groups
from trelm_ds.evaluation.finetuning.classifier import Classifier, task_loss
from trelm_ds.evaluation.finetuning.encoding import EncodedSplit
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.workers import Workers
from trelm_ds.evaluation.tasks import Kind, Scores, Task
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_permutation
from trelm_ds.model import Encoder, Pooler
from trelm_ds.progress import ProgressBar

_TOKENS_PER_EVALUATION = 8192  # in one forward pass


@dataclass
class EpochRecord:
    """One pass over the training split: its mean loss, and dev's scores after it."""

    epoch: int
    loss: float
    dev: Scores


@dataclass
class RunRecord:
    """What came out of one fine-tuning.

    Attributes:
        epochs: one for each epoch that was trained.
        best_epoch: the epoch whose weights were scored; 0 where the run diverged before any ended.
        diverged: whether a loss or what the model gave for dev was not finite, which ends the run.
        scores: by split.
        predictions: by split, one for each example in order: a label, a sorted list of labels, or a number.
        seconds: wall time of training and scoring.
    """

    lr: float
    seed: int
    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    diverged: bool = False
    scores: dict[str, Scores] = field(default_factory=dict)
    predictions: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunRecord:
        """Take it from what `to_json` has returned."""
        return cls(**content | {"epochs": [EpochRecord(**epoch) for epoch in content["epochs"]]})


class FineTuning:
    """A task's encoded splits, a pre-trained encoder, and how one is fine-tuned for the other.

    Args:
        task: with its labels and its score.
        splits: "train", and those that are scored.
        encoder: pre-trained; every run trains a copy.
        pooler: pre-trained; None: every run begins with a fresh one.
        options: hyper-parameters.
        workers: the processes that train together.

    Attributes:
        shortened: by split, how many examples were cut.
    """

    def __init__(
        self,
        task: Task,
        splits: dict[str, EncodedSplit],
        encoder: Encoder,
        pooler: Pooler | None,
        options: FinetuneOptions,
        workers: Workers,
    ) -> None:
        self.task, self.options, self.workers = task, options, workers
        self._train, self._evaluated = splits["train"], {name: splits[name] for name in task.evaluated}
        self.shortened = {name: split.shortened for name, split in splits.items()}
        self._encoder, self._pooler = encoder, pooler

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; its last may have fewer examples."""
        return -(-len(self._train.examples) // self.options.batch_size)

    def run(self, lr: float, seed: int, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> RunRecord:
        """Train with one learning rate and seed, and score the chosen weights; collective.

        The same arguments give the same record on the same CPU.

        Args:
            on_epoch: is told of every epoch as it ends.
        """
        started, record = time.monotonic(), RunRecord(lr, seed)
        model = self._model(seed)
        best = self._train_epochs(model, record, on_epoch)
        if best is not None:
            model.load_state_dict(best)
            self._score_splits(model, record)
        record.seconds = time.monotonic() - started
        return record

    def _model(self, seed: int) -> Classifier:
        torch.manual_seed(int(keyed_bits(seed, Stream.WEIGHTS)) >> 1)
        encoder = copy.deepcopy(self._encoder)
        pooler = Pooler(encoder.config) if self._pooler is None else copy.deepcopy(self._pooler)
        autocast = torch.bfloat16 if self.options.precision == "bf16" else None
        return Classifier(encoder, pooler, len(self.task.labels), autocast).to(self.workers.device)

    def _score_splits(self, model: Classifier, record: RunRecord) -> None:
        for name, split in self._evaluated.items():
            predicted = self._predict(model, split)
            if predicted is None:
                record.diverged, record.best_epoch = True, 0
                record.scores, record.predictions = {}, {}
                return
            record.scores[name] = self._score(split, predicted)
            record.predictions[name] = [plain(target) for target in predicted]

    def _train_epochs(
        self, model: Classifier, record: RunRecord, on_epoch: Callable[[EpochRecord], None]
    ) -> dict[str, Tensor] | None:
        """Train until the last epoch or until dev has stopped improving; return the weights of the epoch to score.

        They are kept whatever the patience: a run that diverges leaves other ones behind. None where no epoch ended.
        """
        from transformers import get_linear_schedule_with_warmup

        options, total = self.options, self.options.epochs * self.steps_per_epoch
        groups = parameter_groups(model, options.weight_decay, routed=False)
        optimizer = torch.optim.AdamW(groups, lr=record.lr, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, round(options.warmup * total), total)
        step = self.workers.stepper(model, optimizer, options.max_grad_norm)
        best, best_score, since = None, -math.inf, 0
        name = f"{self.task.name} lr {record.lr:g} seed {record.seed}"
        with ProgressBar(name, total, enabled=self.workers.rank == 0) as bar:
            for epoch in range(1, options.epochs + 1):
                loss = self._train_epoch(model, epoch, record.seed, step, schedule, bar)
                # The last step of an epoch may spoil the weights behind the last loss that is looked at.
                predicted = self._predict(model, self._evaluated["dev"]) if math.isfinite(loss) else None
                if predicted is None:
                    record.diverged = True
                    break
                dev = self._score(self._evaluated["dev"], predicted)
                record.epochs.append(EpochRecord(epoch, loss, dev))
                on_epoch(record.epochs[-1])
                score, since = dev[self.task.metric], since + 1
                if not options.patience or score > best_score:
                    record.best_epoch, best_score, since = epoch, score, 0
                    best = _on_cpu(model)
                if options.patience and since >= options.patience:
                    break
        return best

    def _train_epoch(
        self, model: Classifier, epoch: int, seed: int, step: Callable[[Tensor], None], schedule: Any, bar: ProgressBar
    ) -> float:
        """Pass over the training split once; return the mean loss, which ends the pass where it is not finite."""
        model.train()
        order = keyed_permutation(len(self._train.examples), seed, Stream.FINETUNING_ORDER, epoch)
        total, seen = 0.0, 0
        for number in range(self.steps_per_epoch):
            indices = order[number * self.options.batch_size :][: self.options.batch_size]
            mine = indices[self.workers.rank :: self.workers.world_size]
            # A rank without an example still has to take part: it computes one that does not count.
            counts, mine = bool(len(mine)), mine if len(mine) else indices[:1]
            torch.manual_seed(int(keyed_bits(seed, Stream.DROPOUT, epoch, number, self.workers.rank)) >> 1)
            batch = self._train.batch(mine).to(self.workers.device)
            # Gradients are averaged over the ranks: by this factor the loss is the mean over the whole batch.
            factor = counts * self.workers.world_size / len(indices)
            loss = task_loss(self.task.kind, model(batch), batch.targets) * factor
            value = self.workers.sum(loss.item()) / self.workers.world_size
            if not math.isfinite(value):
                return value
            step(loss)
            schedule.step()
            total, seen = total + value * len(indices), seen + len(indices)
            bar.advance(note=f"epoch {epoch}  loss {total / seen:.3f}")
        return total / seen

    @torch.no_grad()
    def _predict(self, model: Classifier, split: EncodedSplit) -> list[Any] | None:
        """Predict a split, in its order; every rank computes a part. None where an output is not finite."""
        model.eval()
        found: list[tuple[int, np.ndarray]] = []
        batches = _by_length(split.lengths, _TOKENS_PER_EVALUATION)
        for indices in batches[self.workers.rank :: self.workers.world_size]:
            outputs = model(split.batch(indices).to(self.workers.device)).cpu().numpy()
            found += zip(indices.tolist(), outputs, strict=True)
        everywhere = [pair for of_rank in self.workers.gather(found) for pair in of_rank]
        if not all(np.isfinite(outputs).all() for _, outputs in everywhere):
            return None
        return [self._decide(outputs) for _, outputs in sorted(everywhere, key=lambda pair: pair[0])]

    def _decide(self, outputs: np.ndarray) -> Any:
        """Turn outputs [C] into what is predicted: the best label, those with a positive logit, or the number."""
        if self.task.kind is Kind.REGRESSION:
            return float(outputs[0])
        if self.task.kind is Kind.SINGLE:
            return self.task.labels[int(outputs.argmax())]
        return frozenset(self.task.labels[index] for index in np.flatnonzero(outputs > 0))

    def _score(self, split: EncodedSplit, predicted: list[Any]) -> Scores:
        return self.task.score([example.target for example in split.examples], predicted)


def _by_length(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Group examples of similar length, the longest first, into batches of about so many tokens."""
    order, batches, begin = np.argsort(-lengths, kind="stable"), [], 0
    while begin < len(order):
        size = max(1, tokens // int(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def _on_cpu(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}


def plain(target: Any) -> Any:
    """Turn a target into a JSON value."""
    return sorted(target) if isinstance(target, frozenset) else target
