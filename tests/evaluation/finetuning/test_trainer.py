"""Fine-tuning, against transformers' own model under a plain loop, and by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

from tests.evaluation.finetuning.conftest import options, read_task, tuning
from trelm_ds.evaluation.finetuning.options import FinetuneOptions
from trelm_ds.evaluation.finetuning.trainer import FineTuning, RunRecord
from trelm_ds.evaluation.tasks import Kind
from trelm_ds.keyed_random import Stream, keyed_permutation

LR = 2e-3
KINDS = {"typing": "multi_label_classification", "mnli": "single_label_classification", "sts-b": "regression"}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_losses_and_predictions_as_transformers(name: str, tiny_tasks: Path) -> None:
    """Padded batches, their model, their loss; the same order of examples and the same fresh weights."""
    mine = tuning(tiny_tasks, name, options(batch_size=7))
    record = mine.run(LR, seed=5)
    train, kind = mine._train, mine.task.kind
    theirs = BertForSequenceClassification.from_pretrained(
        tiny_tasks / "bert", num_labels=len(mine.task.labels), problem_type=KINDS[name]
    )
    fresh = mine._model(5)
    theirs.classifier.load_state_dict(fresh.output.state_dict())

    def outputs(split: object, indices: np.ndarray) -> dict[str, torch.Tensor]:
        def padded(rows: list[np.ndarray]) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(rows[index]) for index in indices], True)

        ids, labels = padded(split.input_ids), split.targets[indices]  # type: ignore[attr-defined]
        types = padded(split.token_types)  # type: ignore[attr-defined]
        return theirs(input_ids=ids, attention_mask=(ids != 0).long(), token_type_ids=types, labels=labels)

    matrices = [parameter for parameter in theirs.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    total = 2 * mine.steps_per_epoch
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.06 * total), total)
    theirs.train()
    for epoch in (1, 2):
        order, losses = keyed_permutation(len(train.examples), 5, Stream.FINETUNING_ORDER, epoch), []
        for begin in range(0, len(order), 7):
            indices = order[begin : begin + 7]
            loss = outputs(train, indices)["loss"]
            losses.append(loss.item() * len(indices))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        assert record.epochs[epoch - 1].loss == pytest.approx(sum(losses) / len(order), rel=1e-4)
    theirs.eval()
    dev = mine._evaluated["dev"]
    with torch.no_grad():
        logits = outputs(dev, np.arange(len(dev.examples)))["logits"].numpy()
    if kind is Kind.REGRESSION:
        np.testing.assert_allclose(record.predictions["dev"], logits[:, 0], atol=1e-3)
    else:
        expected = [mine._decide(of_example) for of_example in logits]
        assert [frozenset(p) if kind is Kind.MULTI else p for p in record.predictions["dev"]] == expected


@pytest.mark.parametrize("name", ["typing", "relation", "cola", "mrpc", "sts-b", "mnli"])
def test_every_task_can_be_learned(name: str, tiny_tasks: Path) -> None:
    record = tuning(tiny_tasks, name, options(epochs=25)).run(LR, seed=1)
    task = read_task(tiny_tasks, name)
    assert record.epochs[-1].loss < record.epochs[0].loss / 2
    assert record.scores[task.reported][task.metric] > task.baseline(task.reported)[task.metric] + 0.3


def same(one: RunRecord, other: RunRecord) -> bool:
    return one.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


def test_a_run_is_a_function_of_its_seed(tiny_tasks: Path) -> None:
    """Also with several threads, and whatever was run before it."""
    mine = tuning(tiny_tasks, "mrpc", options(), model="bare")
    first, other = mine.run(LR, seed=1), mine.run(LR, seed=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same(mine.run(LR, seed=1), mine.run(LR, seed=1))
    finally:
        torch.set_num_threads(threads)
    assert same(mine.run(LR, seed=1), first)
    assert not same(other, first)


def test_records_survive_json(tiny_tasks: Path) -> None:
    record = tuning(tiny_tasks, "typing", options(epochs=1)).run(LR, seed=1)
    assert RunRecord.from_json(record.to_json()) == record


class Scripted(FineTuning):
    """Dev scores and losses as given, epoch after epoch."""

    scores: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    def _train_epoch(self, *arguments: object) -> float:
        loss, self.losses = self.losses[0], self.losses[1:]
        return loss

    def _score(self, split: object, predicted: object) -> dict[str, float]:
        if not self.scores:
            return {"matthews": -1.0}  # of the chosen weights, at the end
        score, self.scores = self.scores[0], self.scores[1:]
        return {"matthews": score}


def scripted(folder: Path, given: FinetuneOptions, scores: tuple[float, ...], losses: tuple[float, ...]) -> RunRecord:
    plan = tuning(folder, "cola", given, kind=Scripted)
    assert isinstance(plan, Scripted)
    plan.scores, plan.losses = scores, losses
    return plan.run(LR, seed=1)


@pytest.mark.parametrize(
    ("patience", "scores", "best"),
    [
        (2, (0.1, 0.3, 0.2, 0.1), 2),
        (1, (0.3, 0.3), 1),  # equal is not better
        (9, (0.1, 0.3, 0.2, 0.1, 0.2), 2),
        (0, (0.1, 0.3, 0.2, 0.1, 0.2), 5),
        (3, (-0.5, -0.6, -0.4, -0.9, -0.9), 3),
    ],
)
def test_early_stopping(patience: int, scores: tuple[float, ...], best: int, tiny_tasks: Path) -> None:
    record = scripted(tiny_tasks, options(epochs=5, patience=patience), scores, (1.0,) * 5)
    assert (len(record.epochs), record.best_epoch) == (len(scores), best)


@pytest.mark.parametrize("patience", [0, 2])
def test_a_loss_that_is_not_finite_ends_the_run(patience: int, tiny_tasks: Path) -> None:
    record = scripted(tiny_tasks, options(epochs=4, patience=patience), (0.1, 0.2), (1.0, 0.9, math.nan))
    assert (record.diverged, record.best_epoch, len(record.epochs)) == (True, 2, 2)
    record = scripted(tiny_tasks, options(epochs=4, patience=patience), (), (math.inf,))
    assert (record.diverged, record.best_epoch, record.scores) == (True, 0, {})


class Spoiled(FineTuning):
    """From the second epoch on the last step leaves weights that are no numbers."""

    loss = math.nan

    def _train_epoch(self, model: torch.nn.Module, epoch: int, *rest: Any) -> float:
        loss = super()._train_epoch(model, epoch, *rest)  # type: ignore[arg-type]
        if epoch < 2:
            return loss
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        return self.loss


@pytest.mark.parametrize("name", ["cola", "sts-b", "typing"])
@pytest.mark.parametrize("loss", [math.nan, 0.5], ids=["loss seen", "loss not seen"])
@pytest.mark.parametrize("patience", [0, 2])
def test_weights_of_a_run_that_diverged_are_not_scored(
    patience: int, loss: float, name: str, tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spoiled, "loss", loss)
    sound = tuning(tiny_tasks, name, options(epochs=3, patience=3)).run(LR, seed=1).epochs[0]
    record = tuning(tiny_tasks, name, options(epochs=3, patience=patience), kind=Spoiled).run(LR, seed=1)
    assert (record.diverged, record.best_epoch, record.epochs) == (True, 1, [sound])
    assert record.scores["dev"] == sound.dev


def test_a_learning_rate_that_is_far_too_high(tiny_tasks: Path) -> None:
    assert tuning(tiny_tasks, "sts-b", options(epochs=3)).run(1e30, seed=1).diverged


def test_the_best_epoch_is_what_is_scored(tiny_tasks: Path) -> None:
    """With a learning rate that spoils the weights later on."""
    record = tuning(tiny_tasks, "cola", options(epochs=12, patience=20, warmup=0.0)).run(0.05, seed=1)
    of_epoch = {epoch.epoch: epoch.dev for epoch in record.epochs}
    assert record.scores["dev"] == of_epoch[record.best_epoch]
    assert of_epoch[record.best_epoch]["matthews"] == max(dev["matthews"] for dev in of_epoch.values())


def test_bf16(tiny_tasks: Path) -> None:
    record = tuning(tiny_tasks, "cola", options(epochs=15, precision="bf16")).run(LR, seed=1)
    assert record.scores["dev"]["accuracy"] > 0.9
