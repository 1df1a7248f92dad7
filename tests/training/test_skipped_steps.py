"""A step that must not be taken is taken by no rank, and the run goes on as if it had not been."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training.test_knowledge import config as knowledge_config
from tests.training.test_pretrain import config, train, without_dropout
from trelm_ds.config import Config, GuardsConfig, RoutingConfig
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.run_folder import committed, read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.trainer import Trainer

BROKEN = 2  # the step, counted from 0


def whole(stage: int | str, precision: str = "fp32") -> Config:
    settings = without_dropout(knowledge_config(stage, precision, max_steps=5))
    settings.routing = RoutingConfig(density=0.25, refresh_every=2, sample_fraction=1.0)
    return settings


def breaks(trainer: Trainer, where: str, rank: int) -> None:
    """From here on step BROKEN has a NaN, on one rank, in the loss or only in a gradient."""
    engine, backward, forward = trainer.engine, trainer.engine.backward, trainer.engine.module.forward

    def bad_backward(loss: torch.Tensor, **more: Any) -> Any:
        broken = trainer.step == BROKEN and trainer.ranks.rank == rank and where == "gradient"
        return backward(loss * float("nan") if broken else loss, **more)

    def bad_forward(*arguments: Any, **more: Any) -> Any:
        output = forward(*arguments, **more)
        broken = trainer.step == BROKEN and trainer.ranks.rank == rank and where == "loss"
        bad = {"mlm": output.losses["mlm"] * float("nan")}
        return output._replace(losses=output.losses | bad) if broken else output

    engine.backward, engine.module.forward = bad_backward, bad_forward  # type: ignore[method-assign]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    from trelm_ds.training.routing import whole_weights

    with whole_weights(trainer.engine) as weights:
        return {name: weight.clone() for name, weight in weights.items()}


def train_one(case: tuple[int | str, str, str], data: Path, folder: Path, ranks: Ranks) -> tuple[Any, ...]:
    """Whether the broken step was taken, whether weights and bank were as before in the next one, lr, final weights."""
    stage, precision, where = case
    seen: dict[str, Any] = {}
    with StopSignals() as signals:
        run = folder / "-".join(map(str, case))
        trainer = build_run(whole(stage, precision), str(data), run, ranks, signals)
        update, knowledge = trainer.update, trainer.component(Knowledge)
        assert knowledge.bank is not None
        bank = knowledge.bank.table

        def watched(loss: torch.Tensor) -> bool:
            state = {"bank": bank.local.clone(), **weights_of(trainer)}
            if trainer.step == BROKEN + 1:
                seen["same"] = all(torch.equal(state[name], seen["state"][name]) for name in state)
            taken: bool = update(loss)
            if trainer.step == BROKEN:
                seen["taken"], seen["state"] = taken, state
            return taken

        trainer.update = watched  # type: ignore[method-assign]
        breaks(trainer, where, rank=1)
        assert trainer.train() == 0
        final = {name: weight.double().sum().item() for name, weight in weights_of(trainer).items()}
        return seen["taken"], seen["same"], trainer.lr, final


def train_through(cases: list[tuple[int | str, str, str]], data: Path, folder: Path) -> list[Any]:
    ranks = connect()
    results = [train_one(case, data, folder, ranks) for case in cases]
    disconnect()
    return results


@pytest.mark.slow
def test_a_nan_on_one_rank_is_skipped_by_all(tiny_dataset: Path, tmp_path: Path) -> None:
    cases = [(stage, precision, where) for stage, precision in PAIRS for where in ("loss", "gradient")]
    by_rank = run_distributed_test(train_through, 2, cases, tiny_dataset, tmp_path)
    for case, one, other in zip(cases, *by_rank, strict=True):
        assert one[:2] == (False, True), case
        assert one == other, case
        run = tmp_path / "-".join(map(str, case))
        (skipped,) = [json.loads(line) for line in (run / "skipped_steps.jsonl").read_text().splitlines()]
        assert (skipped["step"], len(skipped["samples"])) == (BROKEN + 1, 32)
        assert skipped["reason"] == f"{case[2]} not finite", case
        points = read_metrics(run)
        assert [point["skipped_steps"] for point in points] == [0, 0, 1, 1, 1]
        assert [point["lr"] for point in points] == pytest.approx([0.0, 3e-3, 2.25e-3, 1.5e-3, 7.5e-4])  # by step
        assert points[BROKEN]["loss"] != points[BROKEN]["loss"]  # NaN: no step was taken
        assert all(point["loss"] == point["loss"] for point in points[:BROKEN] + points[BROKEN + 1 :])


PAIRS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), ("1_fp32_sums", "bf16"), (3, "bf16")]


def test_a_spike_is_skipped_and_training_goes_on(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(max_steps=8)
    settings.guards = GuardsConfig(spike_sigma=4.0, spike_window=3)
    with StopSignals() as signals:
        trainer = build_run(settings, str(tiny_dataset), tmp_path / "run", one_rank, signals)
        accumulate = trainer.accumulate
        trainer.accumulate = lambda *given: accumulate(*given) * (100 if trainer.step == 5 else 1)  # type: ignore[method-assign]
        with warns("step 6 skipped: loss spike"):
            assert trainer.train() == 0
    assert [point["skipped_steps"] for point in read_metrics(tmp_path / "run")] == [0] * 5 + [1] * 3


def test_the_window_of_losses_is_continued(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(max_steps=4)
    settings.guards = GuardsConfig(spike_sigma=50.0, spike_window=4)
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    with StopSignals() as signals:
        longer = config(max_steps=6)
        longer.guards = settings.guards
        trainer = build_run(longer, str(tiny_dataset), tmp_path / "run", one_rank, signals)
    losses = [point["loss"] for point in read_metrics(tmp_path / "run")]
    assert trainer.guard.manifest()["guard"]["losses"] == pytest.approx(losses, rel=1e-6)
    assert trainer.guard.judge(1e9) == "loss spike"


def test_a_save_waits_for_a_finite_step(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    with StopSignals() as signals:
        trainer = build_run(config(max_steps=6), str(tiny_dataset), tmp_path / "run", one_rank, signals)
        accumulate = trainer.accumulate
        trainer.accumulate = lambda *given: accumulate(*given) * (math.nan if trainer.step == 3 else 1)  # type: ignore[method-assign]
        assert trainer.train() == 0
    assert [path.name for path in committed(tmp_path / "run")] == ["step-00000006", "step-00000005"]  # 5 for 4
