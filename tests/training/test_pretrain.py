"""Real runs on gloo ranks: ZeRO 0-3, resume, export, and what does not fit together."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.distributed import run_distributed_test
from tests.logged import warns
from trelm_ds.checkpoints import export
from trelm_ds.checkpoints.manifest import _hash_of, read_verified
from trelm_ds.config import (
    CkaConfig,
    Config,
    LoaderConfig,
    MaskingConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    RoutingConfig,
    SelectionConfig,
    TrackingConfig,
    TrainerConfig,
)
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.model import Batch, load_pretrained
from trelm_ds.run_folder import committed, read_metrics
from trelm_ds.shards import Manifest
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.trainer import Trainer

PROBE = torch.tensor([2, 9, 4, 17, 11, 3, 2, 4, 8, 3]), torch.tensor([0, 6, 10], dtype=torch.int32), 6


def config(stage: int | str = 1, precision: str = "fp32", **trainer: Any) -> Config:
    """Plain masked language modelling; knowledge and routing have tests of their own.

    `stage` is what follows "zero" in the name of a file of `ds_configs`.
    """
    return Config(
        selection=SelectionConfig(strategy="none"),
        memory=MemoryConfig(enabled=False),
        cka=CkaConfig(decoder="none"),
        routing=RoutingConfig(enabled=False),
        model=ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
        ),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=1),
        trainer=TrainerConfig(
            ds_config=f"ds_configs/zero{stage}.json",
            precision=precision,  # type: ignore[arg-type]
            **{
                "max_steps": 4,
                "global_batch_size": 32,
                "micro_batch_tokens": 160,
                "log_every": 1,
                "checkpoint_every": 2,
            }
            | trainer,
        ),
        tracking=TrackingConfig(enabled=False),
        loader=LoaderConfig(workers=0),
    )


@contextlib.contextmanager
def without_plots() -> Iterator[None]:
    """A plot costs as much as the few steps of most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trelm_ds.training.journal.plot_loss", lambda *_: None)
        yield


def train(config: Config, data: Path, run: Path, ranks: Ranks) -> np.ndarray:
    with without_plots(), StopSignals() as signals:
        trainer = build_run(config, str(data), run, ranks, signals)
        assert trainer.train() == 0
    trainer.engine.eval()
    with torch.no_grad():
        return _all_logits(trainer)


def _all_logits(trainer: Trainer) -> np.ndarray:
    states = trainer.engine(Batch.of_documents(*PROBE)).states
    logits: np.ndarray = trainer.engine.module.logits(states).float().numpy()
    return logits


def train_then_continue(config: Config, data: Path, run: Path) -> np.ndarray:
    """Trains, then forgets everything after step 2 in a copy of the run and continues there."""
    ranks = connect()
    try:
        return continued(config, data, run, ranks)
    finally:
        disconnect()


def continued(config: Config, data: Path, run: Path, ranks: Ranks) -> np.ndarray:
    logits = train(config, data, run, ranks)
    copy = run.with_name("continued")
    if ranks.rank == 0:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / "step-00000004")
    ranks.barrier()
    again = train(config, data, copy, ranks)
    np.testing.assert_array_equal(again, logits)
    return logits


def losses(run: Path) -> list[float]:
    return [point["loss"] for point in read_metrics(run)]


@pytest.fixture(scope="module")
def reference(one_rank: Ranks, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one rank without ZeRO, without dropout."""
    run = tmp_path_factory.mktemp("reference") / "run"
    train(without_dropout(config(stage=0)), tiny_dataset, run, one_rank)
    return losses(run)


def without_dropout(config: Config) -> Config:
    return replace(config, model=replace(config.model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "tokens"),  # on two ranks 160 tokens make 1, 2, 1, 2 micro-batches, 40 make 4, 5, 4, 5
    [
        (0, "fp32", 40),
        (1, "fp32", 160),
        (2, "fp32", 160),
        (3, "fp32", 40),
        (0, "bf16", 160),
        (1, "bf16", 40),
        ("1_fp32_sums", "bf16", 40),
        (3, "bf16", 160),
    ],
)
def test_two_ranks_train_continue_and_export(
    stage: int | str, precision: str, tokens: int, tiny_dataset: Path, tmp_path: Path, reference: list[float]
) -> None:
    run = tmp_path / "run"
    settings = without_dropout(config(stage, precision, micro_batch_tokens=tokens))
    logits = run_distributed_test(train_then_continue, 2, settings, tiny_dataset, run)
    np.testing.assert_array_equal(logits[0], logits[1])
    assert losses(tmp_path / "continued") == losses(run)  # bit-identical
    # Two ranks see what one sees, and steps differ in their number of micro-batches.
    assert losses(run) == pytest.approx(reference, rel=1e-5 if precision == "fp32" else 0.02)

    export(run, tmp_path / "model")
    from transformers import AutoModelForMaskedLM

    ids, _, longest = PROBE
    padded = torch.zeros(2, longest, dtype=torch.long)
    padded[0], padded[1, :4] = ids[:6], ids[6:]
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        scores = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")(padded, attention_mask=mask).logits
    exported = torch.cat([scores[0], scores[1, :4]]).numpy()
    tolerance = 1e-5 if precision == "fp32" else 0.05
    np.testing.assert_allclose(exported, logits[0], atol=tolerance, rtol=0 if precision == "fp32" else 0.05)


def test_dropout_is_continued_exactly_on_one_rank(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    continued(config(), tiny_dataset, run, one_rank)
    assert losses(tmp_path / "continued") == losses(run)
    assert [path.name for path in committed(run)] == ["step-00000004", "step-00000002"]
    assert not list((run / "checkpoints").glob(".*"))


def test_a_changing_mask_rate_is_logged_and_continued_exactly(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    masking = MaskingConfig(probability=(0.6, 0.15))
    continued(replace(config(), masking=masking), tiny_dataset, tmp_path / "run", one_rank)
    for run in ("run", "continued"):
        rates = [point["mask_rate"] for point in read_metrics(tmp_path / run)]
        np.testing.assert_allclose(rates, [0.6, 0.45, 0.3, 0.15])
    assert losses(tmp_path / "run") == losses(tmp_path / "continued")
    with pytest.raises(UserError, match=r"masking.probability \(\[0.6, 0.15\], now 0.15\)"):
        train(config(), tiny_dataset, tmp_path / "run", one_rank)


def test_the_loss_falls(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    train(config(max_steps=60, log_every=20), tiny_dataset, tmp_path / "run", one_rank)
    first, *_, last = losses(tmp_path / "run")
    assert last < 0.7 * first


def test_training_starts_from_a_folder(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    train(config(), tiny_dataset, tmp_path / "run", one_rank)
    export(tmp_path / "run", tmp_path / "model")
    start = without_dropout(config(max_steps=2))
    start.optimizer.lr = 0.0
    start.model.init_from = str(tmp_path / "model")
    start.model.num_hidden_layers = 7
    with warns("model.num_hidden_layers: 7 is ignored, .*config.json decides: 2"):
        train(start, tiny_dataset, tmp_path / "second", one_rank)
    written = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert written["model"]["num_hidden_layers"] == 2  # what was used
    export(tmp_path / "second", tmp_path / "again")
    ours, theirs = (load_pretrained(tmp_path / name).state_dict() for name in ("model", "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def finished(one_rank: Ranks, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train(config(), tiny_dataset, run, one_rank)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of four steps with checkpoints at 2 and 4."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def fails(settings: Config, data: Path, run: Path, one_rank: Ranks) -> str:
    with pytest.raises(UserError) as error:
        train(settings, data, run, one_rank)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_finished_run_stays_as_it_is(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    train(config(), tiny_dataset, run, one_rank)
    assert {path: path.read_bytes() for path in run.rglob("*.pt")} == before


def test_out_is_a_folder_of_its_own(one_rank: Ranks, tiny_dataset: Path, run: Path, tmp_path: Path) -> None:
    message = "--out: {} is {}; give a folder of its own"
    assert message.format(tiny_dataset, "a dataset or a checkpoint") in fails(
        config(), tiny_dataset, tiny_dataset, one_rank
    )
    export(run, tmp_path / "model")
    assert message.format(tmp_path / "model", "a model") in fails(config(), tiny_dataset, tmp_path / "model", one_rank)
    assert sorted(path.name for path in (tmp_path / "model").glob("*.json")) == [
        *("config.json", "tokenizer.json", "tokenizer_config.json")
    ]


def test_what_a_continuation_must_share(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    assert "made with another trainer.global_batch_size (32, now 16)" in fails(
        config(max_steps=6, global_batch_size=16), tiny_dataset, run, one_rank
    )
    wider = config()
    wider.model.intermediate_size = 64
    assert "made with another model.intermediate_size (" in fails(wider, tiny_dataset, run, one_rank)
    assert 'is "never", but' in fails(config(resume="never"), tiny_dataset, run, one_rank)
    assert "is no committed checkpoint" in fails(config(resume=str(run)), tiny_dataset, run / "new", one_rank)
    own = str(run / "checkpoints" / "step-00000002")
    assert "branch off into another --out" in fails(config(resume=own), tiny_dataset, run, one_rank)
    faster = config()
    faster.optimizer.lr = 1.0
    assert "made with another optimizer.lr (0.003, now 1.0)" in fails(faster, tiny_dataset, run, one_rank)
    assert "trainer.max_steps: is 3, " in fails(config(max_steps=3), tiny_dataset, run, one_rank)


def test_a_damaged_checkpoint_is_passed_over(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    """The step before it is taken, with a warning, and training ends with the same weights."""
    undisturbed = losses(run)
    damaged = next((run / "checkpoints" / "step-00000004").glob("zero_pp*"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with warns("checkpoint passed over.*does not match"):
        train(config(), tiny_dataset, run, one_rank)
    assert losses(run) == undisturbed
    assert committed(run)[0].name == "step-00000004"
    assert read_verified(committed(run)[0]).step == 4  # written anew


def test_a_kill_before_the_pointer_costs_nothing(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    pointer = run / "checkpoints" / "latest.json"
    for content in ('{"checkpoint": "step-00000002", "step": 2}', "{bro", "[]"):
        pointer.write_text(content)
        train(config(), tiny_dataset, run, one_rank)
        assert committed(run)[0].name == "step-00000004"
    assert [path.name for path in committed(run)] == ["step-00000004", "step-00000002"]


def sealed(manifest: dict[str, Any]) -> str:
    """As somebody would write it who knows how."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return json.dumps(content | {"sha256": _hash_of(content)})


def test_a_file_that_the_manifest_does_not_name_is_refused(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000004"
    content = json.loads((checkpoint / "manifest.json").read_text())
    for files, message in (({}, "nothing vouches for it"), ([], "damaged manifest"), ({"a": 3}, "damaged manifest")):
        (checkpoint / "manifest.json").write_text(sealed(content | {"files": files}))
        with pytest.raises(UserError, match=message):
            read_verified(checkpoint)


def test_a_checkpoint_starts_another_run_once(one_rank: Ranks, tiny_dataset: Path, run: Path, tmp_path: Path) -> None:
    start = str(run / "checkpoints" / "step-00000002")
    for steps in (6, 8):
        train(config(max_steps=steps, resume=start), tiny_dataset, tmp_path / "branch", one_rank)
    assert [point["step"] for point in read_metrics(tmp_path / "branch")] == [3, 4, 5, 6, 7, 8]


def test_an_exploding_loss_ends_the_run_and_saves_no_more(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    wild = config(max_steps=20)
    wild.optimizer.lr, wild.optimizer.max_grad_norm = 1e30, 0.0
    message = fails(wild, tiny_dataset, tmp_path / "wild", one_rank)
    assert "guards.max_skipped: 11 of the last" in message
    # Step 2 has moved the weights far away; what was saved before anybody could know it takes nobody's place.
    assert [path.name for path in committed(tmp_path / "wild")] == ["step-00000002"]
    skipped = [json.loads(line) for line in (tmp_path / "wild" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in skipped] == ["loss not finite"] * 11
    assert len(skipped[0]["samples"]) == 32


def test_no_sound_checkpoint_is_an_error(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    for weights in run.rglob("mp_rank_00_model_states.pt"):
        weights.unlink()
    with warns("missing from the checkpoint"):
        assert "no checkpoint is sound" in fails(config(), tiny_dataset, run, one_rank)
    with warns("missing"), pytest.raises(UserError, match="no checkpoint is sound"):
        export(run, run.parent / "model")


def test_a_half_written_save_is_ignored_and_cleared(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / ".step-00000006.partial")
    (folder / "step-00000004" / "manifest.json").rename(folder / "kept")  # a removal that was killed
    (folder / "kept").unlink()
    train(config(), tiny_dataset, run, one_rank)
    assert sorted(path.name for path in folder.glob("*step*")) == ["step-00000002", "step-00000004"]
    assert json.loads((folder / "latest.json").read_text()) == {"checkpoint": "step-00000004", "step": 4}


def test_other_tokenizers_and_lengths_are_refused(
    one_rank: Ranks, tiny_dataset: Path, run: Path, tmp_path: Path
) -> None:
    shorter = config()
    shorter.model.max_position_embeddings = 16
    assert "the model reads 16 tokens, the dataset was prepared with --max-length 32" in fails(
        shorter, tiny_dataset, tmp_path / "new", one_rank
    )
    export(run, tmp_path / "model")
    vocabulary = (tmp_path / "model" / "vocab.txt").read_text().splitlines()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / "vocab.txt").write_text("\n".join([*vocabulary[:5], *reversed(vocabulary[5:])]) + "\n")
    other = config()
    other.model.init_from = str(tmp_path / "model")
    assert "has another tokenizer than the dataset" in fails(other, tiny_dataset, tmp_path / "new", one_rank)
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(tmp_path / "model", copy / "tokenizer")
    assert "not the tokenizer that made this dataset" in fails(config(), copy, tmp_path / "new", one_rank)


def test_the_order_is_kept_in_the_checkpoint_and_checked(one_rank: Ranks, tiny_dataset: Path, run: Path) -> None:
    path = run / "checkpoints" / "step-00000004" / "manifest.json"
    content = json.loads(path.read_text())
    fingerprint = Manifest.load(tiny_dataset).fingerprint
    assert content["order"] == {
        "seed": 0,
        "window_blocks": 16,
        "epoch": 0,
        "position": 128,
        "tail": "wrap",
        "dataset": fingerprint,
    }
    content["order"]["position"] = 96
    path.write_text(sealed(content))
    assert "its reading position is not that of step 4" in fails(config(max_steps=6), tiny_dataset, run, one_rank)
    other = config(max_steps=6)
    other.loader.tail = "drop"
    assert "made with another loader.tail (wrap, now drop)" in fails(other, tiny_dataset, run, one_rank)


def test_a_dataset_behind_a_url(one_rank: Ranks, tiny_dataset: Path, run: Path, tmp_path: Path) -> None:
    """The same losses as from the folder, and the run can be continued from either."""
    settings = config(max_steps=6)
    settings.loader.cache_dir, settings.loader.workers = str(tmp_path / "cache"), 1
    with StopSignals() as signals:
        assert build_run(settings, tiny_dataset.as_uri(), run, one_rank, signals).train() == 0
    train(config(max_steps=6), tiny_dataset, tmp_path / "whole", one_rank)
    assert [point["step"] for point in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "cache").glob("*/shard-*.tar"))) == 1
