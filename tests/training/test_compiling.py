"""Compiled layers: the same losses, exact continuation, no graph for every batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training.test_pretrain import continued, losses, train, train_then_continue, without_dropout
from tests.training.test_routing import config as routed_config
from trelm_ds.config import Config, ModelConfig
from trelm_ds.distributed import Ranks
from trelm_ds.engine import compile_layers, compiled_graphs
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, Tail
from trelm_ds.run_folder import read_metrics
from trelm_ds.training.compiling import Compiling


def eagerly(settings: Config, data: Path, run: Path) -> tuple[np.ndarray, float]:
    """Train and continue compiled, by a backend that traces as Inductor does but generates no code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trelm_ds.engine.compiling.BACKEND", "aot_eager")
        logits = train_then_continue(settings, data, run)
    return logits, read_metrics(run)[-1]["compiled_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "routing", "checkpointing"),
    [
        (0, {"path": "full"}, False),
        (1, {}, True),
        (2, {"trainable": "ffn_only"}, False),
        (3, {}, True),
        (1, {"compact": True, "path": "full"}, True),
    ],
)
def test_two_ranks_train_as_without(
    stage: int, routing: dict[str, str], checkpointing: bool, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = without_dropout(routed_config(stage, routing=routing, micro_batch_tokens=160))
    settings = replace(settings, model=replace(settings.model, activation_checkpointing=checkpointing))
    alone = replace(settings, trainer=replace(settings.trainer, ds_config="ds_configs/zero0.json"))
    train(alone, tiny_dataset, tmp_path / "alone", one_rank)
    compiled = replace(settings, trainer=replace(settings.trainer, compile=True))
    (_, graphs), (_, others) = run_distributed_test(eagerly, 2, compiled, tiny_dataset, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert losses(tmp_path / "continued") == losses(tmp_path / "run")
    assert 1 <= graphs <= 6
    assert others == graphs


@pytest.mark.slow
def test_inductor_continues_exactly(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """With dropout, whose draws are Inductor's own."""
    settings = routed_config(micro_batch_tokens=160, compile=True)
    continued(settings, tiny_dataset, tmp_path / "run", one_rank)
    assert losses(tmp_path / "continued") == losses(tmp_path / "run")
    plain = without_dropout(replace(settings, trainer=replace(settings.trainer, compile=False)))
    train(plain, tiny_dataset, tmp_path / "plain", one_rank)
    train(without_dropout(settings), tiny_dataset, tmp_path / "compiled", one_rank)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_layers_stay_compiled_whatever_kinds_of_batches_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """More kinds than torch's own limit, 8, behind which it would run them uncompiled."""
    monkeypatch.setattr("trelm_ds.engine.compiling.BACKEND", "eager")
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    torch._dynamo.reset()
    sizes = EncoderConfig.from_settings(
        ModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16), 30, 0
    )
    model = MaskedLanguageModel(sizes)
    compile_layers(model, 0)
    before, kinds = compiled_graphs(), 0
    for lengths, tail in (([4, 4], None), ([4, 3], None), ([4, 4, 2, 2], Tail(2, 4, 2)), ([4, 3, 2, 1], Tail(2, 3, 2))):
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for training, grad in ((True, True), (False, True), (False, False)):
            kinds += 1
            with torch.set_grad_enabled(grad):
                model.train(training).encoder(torch.arange(sum(lengths)), bounds, 4, tail=tail)
    assert compiled_graphs() - before == kinds > 8


def test_ever_more_graphs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = 7
    monkeypatch.setattr("trelm_ds.training.compiling.compiled_graphs", lambda: graphs)
    watch = Compiling()
    graphs = 9
    for _ in range(100):
        watch.after_step(True)
    assert watch.metrics(1.0) == {"compiled_graphs": 2}
    watch.after_step(True)
    assert watch.metrics(1.0) == {"compiled_graphs": 2}
    graphs = 12
    with warns("trainer.compile: 3 more graphs were compiled after step 100 of this start"):
        assert watch.metrics(1.0) == {"compiled_graphs": 5}
    assert watch.metrics(1.0) == {"compiled_graphs": 5}  # told once
