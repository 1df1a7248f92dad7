"""Compact routing computes what lazy routing does, with parameters of the path's neurons alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training.test_pretrain import fails, losses, train, train_then_continue, without_dropout
from tests.training.test_routing import config, weights_at
from trelm_ds.cli import main
from trelm_ds.config import Config, ModelConfig
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.knowledge.tables import TableGroup
from trelm_ds.model import Encoder, EncoderConfig
from trelm_ds.run_folder import checkpoints_folder, committed, read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.compact import CompactNeurons
from trelm_ds.training.guards import SPIKE, Guard
from trelm_ds.training.routing import Routing

STEPS = 8


def pair(stage: int | str, routing: dict[str, Any], norm: float = 0.0, **trainer: Any) -> tuple[Config, Config]:
    """Lazy and compact, with a choice of neurons every two steps."""
    trainer = {"max_steps": STEPS, "checkpoint_every": STEPS // 2, "micro_batch_tokens": 160} | trainer
    made = []
    for compact in (False, True):
        settings = without_dropout(config(stage, routing=routing | {"compact": compact}, **trainer))
        made.append(replace(settings, optimizer=replace(settings.optimizer, max_grad_norm=norm)))
    return made[0], made[1]


def compare(one: Path, other: Path, stage: int | str, exactly: bool, steps: int = STEPS) -> None:
    """Compare all losses and the weights of both checkpoints."""
    for step in (steps // 2, steps):
        lazy, compact = (weights_at(run, step) for run in (one, other))
        if stage == 0:  # there bf16 runs save what the model computes with, and the table alone has fp32 weights
            half = {name for name, weight in lazy.items() if torch.equal(weight, weight.bfloat16().float())}
            compact = {name: weight.bfloat16().float() if name in half else weight for name, weight in compact.items()}
        assert lazy.keys() == compact.keys()
        for name, weight in lazy.items():
            if exactly:
                assert torch.equal(compact[name], weight), name
            else:
                torch.testing.assert_close(compact[name], weight, rtol=1e-5, atol=1e-6)
    assert losses(other) == pytest.approx(losses(one), rel=0 if exactly else 1e-5, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("stage", "routing", "norm"), [(0, {}, 0.0), (1, {"path": "full"}, 0.0), (1, {"trainable": "ffn_only"}, 0.05)]
)
def test_one_rank_computes_the_same(
    stage: int, routing: dict[str, Any], norm: float, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Bit for bit, unless gradients are clipped: the sum of squares then has another order."""
    for settings, name in zip(pair(stage, routing, norm), ("lazy", "compact"), strict=True):
        train(settings, tiny_dataset, tmp_path / name, one_rank)
    compare(tmp_path / "lazy", tmp_path / "compact", stage, exactly=not norm)
    assert max(point.get("path_turnover", 0.0) for point in read_metrics(tmp_path / "compact")) > 0


def trained(settings: Config, data: Path, run: Path) -> None:
    ranks = connect()
    try:
        train(settings, data, run, ranks)
    finally:
        disconnect()


@pytest.mark.parametrize("stage", [0, 1])
def test_skipped_steps_before_choices(
    stage: int, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second choice finds an optimizer that may have no state yet, the others one that has skipped a step."""
    for settings, name in zip(pair(stage, {}), ("lazy", "compact"), strict=True):
        verdicts = iter([SPIKE, SPIKE, None, SPIKE, None, SPIKE, None, None])
        monkeypatch.setattr(Guard, "judge", lambda self, loss, verdicts=verdicts: next(verdicts))
        settings.guards.max_skipped = 4
        train(settings, tiny_dataset, tmp_path / name, one_rank)
    compare(tmp_path / "lazy", tmp_path / "compact", stage, exactly=True)


def test_the_first_path_goes_where_the_layers_are() -> None:
    """It is made before the model is moved to a GPU, for which another device stands here."""
    sizes = ModelConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    encoder = Encoder(EncoderConfig.from_settings(sizes, 30, 0))
    layer = encoder.blocks[0].feed_forward
    layer.make_compact(torch.arange(3))
    encoder.to("meta")
    engine: Any = SimpleNamespace(module=SimpleNamespace(encoder=encoder))
    CompactNeurons(engine, 0, torch.device("cpu"), TableGroup())
    assert layer.path is not None
    assert layer.path.neurons.device.type == "meta"


def test_before_the_first_choice(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint is exported and looked at, and continued: its folder of routing has rows but no paths."""
    settings = pair(1, {"start_step": 3})[1]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(replace(settings, trainer=replace(settings.trainer, max_steps=4)), tiny_dataset, whole, one_rank)
    half = replace(settings, trainer=replace(settings.trainer, max_steps=4, checkpoint_every=2, keep_checkpoints=2))
    train(half, tiny_dataset, run, one_rank)
    first = checkpoints_folder(run) / "step-00000002"
    assert not (first / "routing" / "paths.safetensors").exists()
    asked = ["--prompt", "Person01 lives in [MASK].", "--answer", "City03", "--out", str(tmp_path / "neurons.json")]
    with pytest.raises(SystemExit) as ended:
        main(["neurons", str(first), *asked])
    assert ended.value.code in (0, None), capsys.readouterr().err
    assert "on_path" not in json.loads((tmp_path / "neurons.json").read_text())["neurons"][0]
    (first.parent / "step-00000004").rename(tmp_path / "aside")
    train(half, tiny_dataset, run, one_rank)
    for name, weight in weights_at(whole, 4).items():
        assert torch.equal(weights_at(run, 4)[name], weight), name


CPU = {"device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "zero", [{"stage": 2, "offload_optimizer": CPU}, {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}]
)
def test_offloaded_and_recomputed(zero: dict[str, Any], one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Masters on the host; layers that write their buffers twice a step, before the backward pass reads them."""
    file = tmp_path / "ds.json"
    small = {"stage3_param_persistence_threshold": 0} if zero["stage"] == 3 else {}
    file.write_text(json.dumps({"zero_optimization": zero | small}))
    for settings, name in zip(pair(1, {}), ("lazy", "compact"), strict=True):
        settings.trainer.ds_config = str(file)
        settings.model.activation_checkpointing = True
        train(settings, tiny_dataset, tmp_path / name, one_rank)
    compare(tmp_path / "lazy", tmp_path / "compact", zero["stage"], exactly=True)


def test_neurons_that_are_not_finite_are_not_committed(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """A neuron off the path, which no gradient and no norm looks at, in its second moment."""
    with StopSignals() as signals:
        trainer = build_run(pair(1, {})[1], str(tiny_dataset), tmp_path / "run", one_rank, signals)
        trainer.engine.train()
        trainer.train_step()
        compact = trainer.component(Routing).compact
        assert compact is not None
        compact.table.local[-1, -1] = float("nan")
        trainer.save()
        with warns("neurons: weights or moments are not finite; another run needs a lower optimizer.lr"):
            trainer.saver.settle()
        trainer.reader.loader.close()
    assert not committed(tmp_path / "run")


def test_nothing_to_leave_out(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = pair(1, {"density": 0.999})[1]
    message = fails(settings, tiny_dataset, tmp_path / "run", one_rank)
    assert message == "routing.density: 0.999 of 48 neurons is all; lower it for routing.compact"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "routing"),
    [
        (0, "fp32", {"top_layers": 1}),
        (1, "fp32", {}),
        (2, "fp32", {"trainable": "ffn_only"}),
        (3, "fp32", {"path": "full"}),
        (0, "bf16", {}),
        (1, "bf16", {"path": "full"}),
        ("1_fp32_sums", "bf16", {}),
        (3, "bf16", {}),
    ],
)
def test_two_ranks_compute_the_same_and_continue(
    stage: int | str, precision: str, routing: dict[str, Any], tiny_dataset: Path, tmp_path: Path
) -> None:
    lazy, compact = pair(stage, routing, precision=precision)
    run_distributed_test(trained, 2, lazy, tiny_dataset, tmp_path / "lazy")
    run_distributed_test(train_then_continue, 2, compact, tiny_dataset, tmp_path / "run")
    compare(tmp_path / "lazy", tmp_path / "run", stage, exactly=True)
    assert losses(tmp_path / "continued") == losses(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])  # the others of 1, 2 x 0, 1, 2, 3 pass and cost a minute
def test_sixty_steps_compute_the_same(ranks: int, stage: int, tiny_dataset: Path, tmp_path: Path) -> None:
    """Four choices of neurons, fifteen steps apart, which give moments and numbers of updates time to differ."""
    steps = 60
    trainer = {"max_steps": steps, "checkpoint_every": steps // 2, "global_batch_size": 8, "micro_batch_tokens": 80}
    for settings, name in zip(pair(stage, {"refresh_every": 15}, **trainer), ("lazy", "compact"), strict=True):
        run_distributed_test(trained, ranks, settings, tiny_dataset, tmp_path / name)
    compare(tmp_path / "lazy", tmp_path / "compact", stage, exactly=True, steps=steps)
    points = read_metrics(tmp_path / "compact")
    assert len(points) == steps
    chosen = [point.get("path_turnover", 1.0) for point in points[::15]]  # of the first there is nothing to exchange
    assert all(turnover > 0 for turnover in chosen), chosen


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [((1, 3), (2, 1)), ((2, 0), (1, 3)), ((2, 2), (1, 0))])
def test_other_ranks_and_stages_continue(
    first: tuple[int, int], then: tuple[int, int], tiny_dataset: Path, tmp_path: Path
) -> None:
    """(ranks, ZeRO stage) at first and then; the weights are those of the lazy run that goes on in the same way."""
    kept = {"keep_every": STEPS // 2}
    for settings, name in zip(pair(first[1], {}, **kept), ("lazy", "compact"), strict=True):
        run = tmp_path / name
        half = replace(settings, trainer=replace(settings.trainer, max_steps=STEPS // 2))
        run_distributed_test(trained, first[0], half, tiny_dataset, run)
        other = replace(settings, trainer=replace(settings.trainer, ds_config=f"ds_configs/zero{then[1]}.json"))
        run_distributed_test(trained, then[0], other, tiny_dataset, run)
    lazy, compact = (weights_at(tmp_path / name, STEPS) for name in ("lazy", "compact"))
    assert all(torch.equal(compact[name], weight) for name, weight in lazy.items())
