"""Losses on text held out: the same questions every time and for any number of ranks, and training does not notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import run_distributed_test
from tests.training import test_pretrain as plain
from tests.training import test_routing as routed
from tests.training.test_pretrain import train, without_dropout, without_plots
from tests.training.test_routing import weights_at
from trelm_ds.batches import Masker
from trelm_ds.config import Config, KeplerConfig, LoaderConfig, MaskingConfig
from trelm_ds.corpus import PrepareOptions, describe, load_tokenizer, prepare, word_starts
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.model import Batch
from trelm_ds.run_folder import TIMED, read_metrics
from trelm_ds.shards import HELD_OUT_TEXT, SampleOrder, ShardReader
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.held_out import HeldOutLosses


@pytest.fixture(scope="module")
def dataset(tiny_corpus: Path, once: Callable[..., Path]) -> Path:
    """The tiny dataset, with 35 of its documents held out."""

    def make(folder: Path) -> None:
        source, graph = tiny_corpus / "corpus.jsonl", tiny_corpus / "wikidata5m"
        prepare(PrepareOptions(source, graph, "train", folder / "tiny", 32, 300, held_out=0.2))

    return once("held_out_dataset", make) / "tiny"


def points(run: Path, evaluated: bool = False) -> list[dict[str, float]]:
    """What the log points say of training, or of the text held out; without what depends on time."""
    return [
        {name: value for name, value in point.items() if name.startswith("eval_") == evaluated or name == "step"}
        for point in ({k: v for k, v in one.items() if not k.startswith(TIMED)} for one in read_metrics(run))
    ]


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    found = {int(point.pop("step")): point for point in points(run, evaluated=True)}
    return {step: point for step, point in found.items() if point}


def held_out_losses(config: Config, data: Path, run: Path, ranks: Ranks) -> dict[str, float]:
    """Evaluate the model as it is at the start, twice."""
    with without_plots(), StopSignals() as signals:
        trainer = build_run(config, str(data), run, ranks, signals)
        with trainer.held:
            losses = trainer.component(HeldOutLosses)
            found = losses.evaluate()
            assert trainer.engine.training
            assert losses.evaluate() == found
    return found


def test_training_is_the_same_to_the_bit(one_rank: Ranks, dataset: Path, tmp_path: Path) -> None:
    """With dropout, memory bank, assessing and routing; also where a run is continued."""
    settings = routed.config(1, max_steps=5)
    evaluating = replace(settings, trainer=replace(settings.trainer, eval_every=2, eval_sequences=20))
    logits = train(settings, dataset, tmp_path / "without", one_rank)
    again = train(evaluating, dataset, tmp_path / "with", one_rank)
    np.testing.assert_array_equal(again, logits)
    assert points(tmp_path / "with") == points(tmp_path / "without")
    before, after = (weights_at(tmp_path / run, 5) for run in ("without", "with"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = evaluations(tmp_path / "with")
    assert list(found) == [2, 4, 5]
    assert set(found[5]) == {"eval_loss", "eval_mlm_loss", "eval_accuracy", "eval_cka_loss", "eval_cka_accuracy"}
    assert found[2] != found[4] != found[5]
    half = replace(settings, trainer=replace(settings.trainer, resume=str(tmp_path / "with/checkpoints/step-00000004")))
    train(replace(half, trainer=replace(half.trainer, eval_every=1)), dataset, tmp_path / "half", one_rank)
    other_part = evaluations(tmp_path / "half")[5]
    assert points(tmp_path / "half") == points(tmp_path / "without")[4:]
    assert other_part["eval_mlm_loss"] != found[5]["eval_mlm_loss"]  # of all sequences, not of 20


def train_both(settings: Config, data: Path, folder: Path) -> None:
    ranks = connect()
    try:
        without = replace(settings, trainer=replace(settings.trainer, eval_every=0))
        np.testing.assert_array_equal(
            train(settings, data, folder / "with", ranks), train(without, data, folder / "without", ranks)
        )
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "sequences"), [(3, 1000), (3, 20), (1, 1000)])
def test_two_ranks_find_what_one_does(
    stage: int, sequences: int, one_rank: Ranks, dataset: Path, tmp_path: Path
) -> None:
    """In parts of 32: one of 32 and one of 3; or one alone, so that a rank has none."""
    settings = without_dropout(
        routed.config(stage, max_steps=3, eval_every=1, eval_sequences=sequences, micro_batch_tokens=160)
    )
    run_distributed_test(train_both, 2, settings, dataset, tmp_path)
    assert points(tmp_path / "with") == points(tmp_path / "without")
    train(replace(settings, trainer=replace(settings.trainer, ds_config="ds_configs/zero0.json")), dataset,
          tmp_path / "alone", one_rank)  # fmt: skip
    ours, theirs = (evaluations(tmp_path / run) for run in ("with", "alone"))
    assert list(ours) == [1, 2, 3]
    for step in ours:
        assert ours[step] == pytest.approx(theirs[step], rel=2e-5)


def test_the_loss_is_that_of_the_sequences_one_by_one(one_rank: Ranks, dataset: Path, tmp_path: Path) -> None:
    settings = plain.config(0, eval_every=1, eval_sequences=30)
    with StopSignals() as signals:
        trainer = build_run(settings, str(dataset), tmp_path / "run", one_rank, signals)
    with trainer.held:
        found = trainer.component(HeldOutLosses).evaluate()
        trainer.engine.eval()
        reader, tokenizer = ShardReader(dataset / HELD_OUT_TEXT), load_tokenizer(dataset / "tokenizer")
        masker = Masker(MaskingConfig(), describe(tokenizer), word_starts(tokenizer), 0)
        epochs, ids = SampleOrder(reader.block_sizes, 0, len(reader.block_sizes)).samples(0, 30)
        assert len(set(ids.tolist())) == 30
        total = count = right = 0.0
        for epoch, sample in zip(epochs, ids, strict=True):
            tokens = reader.sequence(int(sample)).tokens.astype(np.int64)
            shown, rows = masker(tokens, np.array([len(tokens)]), np.array([epoch]), np.array([sample]))
            batch = Batch.of_documents(
                torch.from_numpy(shown), torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens)
            )
            batch = batch._replace(
                mlm_positions=torch.from_numpy(rows), mlm_labels=torch.from_numpy(tokens[rows]), n_sequences=1
            )
            with torch.no_grad():
                output = trainer.engine(batch)
            total, count = total + float(output.losses["mlm"]), count + len(rows)
            right += float(output.correct["mlm"])
    assert count > 20
    assert found == pytest.approx(
        {"eval_loss": total / count, "eval_mlm_loss": total / count, "eval_accuracy": right / count}, rel=1e-5
    )


def test_runs_with_other_masks_and_orders_answer_the_same_questions(
    one_rank: Ranks, dataset: Path, tmp_path: Path
) -> None:
    settings = replace(routed.config(0, eval_every=1), kepler=KeplerConfig(weight=0.5))
    other = replace(
        settings,
        masking=MaskingConfig(probability=(0.4, 0.2), whole_word=False),
        loader=LoaderConfig(seed=7, workers=0, window_blocks=1),
        trainer=replace(settings.trainer, global_batch_size=16),
    )
    found = [held_out_losses(one, dataset, tmp_path / str(n), one_rank) for n, one in enumerate((settings, other))]
    assert found[0] == pytest.approx(found[1], rel=1e-6)  # the weights are the same, the facts too
    assert {"eval_mlm_loss", "eval_cka_loss", "eval_kepler_loss"} < set(found[0])


def refused(config: Config, data: Path, run: Path, ranks: Ranks) -> str:
    with pytest.raises(UserError) as error, StopSignals() as signals:
        build_run(config, str(data), run, ranks, signals)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_dataset_without_text_held_out_is_refused(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    message = refused(plain.config(eval_every=2), tiny_dataset, tmp_path / "run", one_rank)
    assert message == (
        f"trainer.eval_every: {tiny_dataset} has no held-out text; make it with `trelm prepare --held-out 0.005`, or "
        "set 0"
    )


def test_text_without_a_mask_is_refused(
    one_rank: Ranks, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a few short sequences may be: their loss would be no number."""
    monkeypatch.setattr("trelm_ds.training.dataset.MaskingConfig", lambda: MaskingConfig(probability=1e-9))
    message = refused(plain.config(eval_every=2, eval_sequences=3), dataset, tmp_path / "run", one_rank)
    assert message == "trainer.eval_sequences: no word of the first 3 held-out ones is masked; use more"


def test_damaged_text_is_named(one_rank: Ranks, dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shard = copy / HELD_OUT_TEXT / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    settings = plain.config(eval_every=2)
    assert f"{shard}: " in refused(settings, copy, tmp_path / "run", one_rank)
    train(replace(settings, trainer=replace(settings.trainer, eval_every=0)), copy, tmp_path / "run", one_rank)
