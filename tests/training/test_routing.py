"""Routing in real runs: what is off the path stays bit for bit, what is on it moves as if masked by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training import test_knowledge as knowledge
from tests.training.test_knowledge import comparable, equals_export, with_cka
from tests.training.test_pretrain import continued, fails, train, train_then_continue, without_dropout
from trelm_ds.checkpoints.export import full_weights
from trelm_ds.checkpoints.manifest import read_verified
from trelm_ds.config import Config, RoutingConfig, SelectionConfig
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.model import EncoderLayer, KeyValueFeedForward, MaskedLanguageModel
from trelm_ds.routing import ROUTING_FOLDER as FOLDER
from trelm_ds.routing import KnowledgePaths, NeuronScores, read_paths
from trelm_ds.run_folder import checkpoints_folder, committed, read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.dataset import open_dataset
from trelm_ds.training.model import build_model
from trelm_ds.training.routing import Routing

NEURONS = ("keys", "key_bias", "values")


def config(
    stage: int | str = 1, precision: str = "fp32", routing: dict[str, Any] | None = None, **trainer: Any
) -> Config:
    """TRELM with every part, routed: the paths are chosen in steps 0, 2."""
    chosen = {"enabled": True, "density": 0.25, "refresh_every": 2, "sample_fraction": 0.5} | (routing or {})
    return replace(knowledge.config(stage, precision, **trainer), routing=RoutingConfig(**chosen))


def neurons_of(weights: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    return {name: weights[f"encoder.layers.{layer}.feed_forward.{name}"] for name in NEURONS}


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    checkpoint = checkpoints_folder(run) / f"step-{step:08d}"
    return full_weights(checkpoint, read_verified(checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "tokens", "routing", "decoder"),
    [
        (0, "fp32", 160, {}, "query"),
        (1, "fp32", 80, {"path": "full", "score_ema": 0.5}, "query"),
        (2, "fp32", 80, {"trainable": "ffn_only"}, "query"),
        (3, "fp32", 80, {"quadrature": "right20"}, "query"),
        (3, "fp32", 160, {"trainable": "ffn_only", "top_layers": 1}, "product"),
        (1, "bf16", 80, {"top_layers": 1}, "product"),
        (3, "bf16", 160, {"path": "full"}, "query"),
        (0, "bf16", 80, {}, "query"),
    ],
)
def test_two_ranks_train_continue_and_export(
    stage: int,
    precision: str,
    tokens: int,
    routing: dict[str, Any],
    decoder: str,
    one_rank: Ranks,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    settings = with_cka(config(stage, precision, routing, micro_batch_tokens=tokens), decoder=decoder)
    settings = without_dropout(settings)
    logits = run_distributed_test(train_then_continue, 2, settings, tiny_dataset, run)
    assert timeless(tmp_path / "continued") == timeless(run)
    if precision == "fp32":  # one rank without ZeRO chooses the same neurons and computes the same
        alone = replace(settings, trainer=replace(settings.trainer, ds_config="ds_configs/zero0.json"))
        train(alone, tiny_dataset, tmp_path / "alone", one_rank)
        paths = [read_paths(committed(folder)[0] / FOLDER)["path"] for folder in (run, tmp_path / "alone")]
        assert torch.equal(*paths)
        for ours, theirs in zip(timeless(run), timeless(tmp_path / "alone"), strict=True):
            ours.pop("grad_norm", None)
            theirs.pop("grad_norm", None)
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7)
    equals_export(run, tmp_path / "model", logits[0], precision)


def timeless(run: Path) -> list[dict[str, float]]:
    """Without what depends on time, and on how the step is cut into micro-batches."""
    apart = ("attribution_time_share", "path_gradient_kept")
    return [{name: value for name, value in point.items() if name not in apart} for point in comparable(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [*((stage, precision) for stage in range(4) for precision in ("fp32", "bf16")), ("1_fp32_sums", "bf16")],
)
def test_off_the_path_nothing_moves(
    stage: int | str, precision: str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """50 steps with accumulation, clipping and weight decay on two ranks; every tenth neuron is on the path."""
    settings = config(
        stage,
        precision,
        {"refresh_every": 1000, "density": 0.1},
        max_steps=50,
        checkpoint_every=50,
        global_batch_size=16,
        micro_batch_tokens=80,
        log_every=50,
    )
    assert settings.optimizer.max_grad_norm > 0
    assert settings.optimizer.weight_decay > 0
    run_distributed_test(train_on_a_rank, 2, settings, tiny_dataset, tmp_path / "run")
    last = weights_at(tmp_path / "run", 50)
    first = build_model(settings, open_dataset(settings, str(tiny_dataset), one_rank)).state_dict()
    if precision == "bf16":  # in which DeepSpeed takes the weights over
        first = {name: weight.bfloat16().float() for name, weight in first.items()}
    paths = read_paths(committed(tmp_path / "run")[0] / FOLDER)["path"]
    assert paths.shape == (2, 5)
    for layer, path in enumerate(paths):
        off = torch.ones(48, dtype=torch.bool)
        off[path] = False
        for name, before in neurons_of(first, layer).items():
            after = neurons_of(last, layer)[name]
            assert torch.equal(before[off], after[off]), name
            # In bf16 a weight may come back to where it was.
            assert (before[path] != after[path]).float().mean() > (0.99 if precision == "fp32" else 0.95), name
    others = [name for name in first if not any(f"feed_forward.{neuron}" in name for neuron in NEURONS)]
    assert all(not torch.equal(first[name], last[name]) for name in others)


def train_on_a_rank(settings: Config, data: Path, run: Path) -> None:
    ranks = connect()
    try:
        train(settings, data, run, ranks)
    finally:
        disconnect()


def mask_by_hand(paths: KnowledgePaths, model: MaskedLanguageModel) -> None:
    """In the place of `KnowledgePaths.install`: dense gradients, multiplied by 0 and 1 before anything sees them."""
    if paths.neurons is None:
        return
    for module in model.modules():
        if isinstance(module, KeyValueFeedForward):
            for handle in module.__dict__.pop("handles", []):
                handle.remove()
    for layer, path in zip(model.encoder.layers, paths.neurons, strict=True):
        assert isinstance(layer, EncoderLayer)
        mask = torch.zeros(48).index_fill(0, path, 1.0)

        def hook(gradient: torch.Tensor, mask: torch.Tensor = mask) -> torch.Tensor:
            return gradient * (mask[:, None] if gradient.dim() > 1 else mask).to(gradient.dtype)

        layer.feed_forward.handles = [  # type: ignore[assignment]
            getattr(layer.feed_forward, name).register_hook(hook) for name in NEURONS
        ]


@pytest.mark.slow
def test_equals_gradients_masked_by_hand(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(1, max_steps=20, checkpoint_every=20, micro_batch_tokens=80, routing={"refresh_every": 5})
    train(settings, tiny_dataset, tmp_path / "ours", one_rank)
    monkeypatch.setattr(KnowledgePaths, "install", mask_by_hand)
    train(settings, tiny_dataset, tmp_path / "hand", one_rank)
    ours, hand = (weights_at(tmp_path / name, 20) for name in ("ours", "hand"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, hand[name], rtol=1e-4, atol=2e-5, msg=name)
    points = [read_metrics(tmp_path / name)[-1] for name in ("ours", "hand")]
    assert points[0]["loss"] == pytest.approx(points[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("trainable", ["all", "ffn_only"])
@pytest.mark.parametrize("top_layers", [None, 1])
def test_what_is_trained(
    trainable: str, top_layers: int | None, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = config(1, routing={"trainable": trainable, "top_layers": top_layers}, checkpoint_every=1)
    settings = replace(settings, trainer=replace(settings.trainer, keep_checkpoints=9))
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    first, last = (weights_at(tmp_path / "run", step) for step in (1, 4))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    neurons = {f"encoder.layers.{layer}.feed_forward.{name}" for layer in (0, 1) for name in NEURONS}
    routed = {name for name in neurons if top_layers is None or ".1." in name}
    assert moved == (routed if trainable == "ffn_only" else set(first) - neurons | routed)
    assert all(point.get("path_neurons") == 12 * len(routed) / 3 for point in read_metrics(tmp_path / "run"))


def test_backward_stops_below_the_lowest_trained_layer(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(1, routing={"trainable": "ffn_only", "top_layers": 1})
    with StopSignals() as signals:
        trainer = build_run(settings, str(tiny_dataset), tmp_path / "run", one_rank, signals)
    seen = []
    for number, layer in enumerate(trainer.engine.module.encoder.layers):
        layer.register_forward_hook(lambda _, __, output, number=number: seen.append((number, output.requires_grad)))
    trainer.engine.train()
    trainer.train_step()
    trainer.reader.loader.close()
    assert set(seen) == {(0, False), (1, True)}


def test_observed(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = config(1, routing={"path": "full", "start_step": 1})
    continued(settings, tiny_dataset, run, one_rank)
    assert timeless(tmp_path / "continued") == timeless(run)
    points = read_metrics(run)
    assert "path_neurons" not in points[0]  # nothing is restricted before start_step
    assert "path_turnover" not in points[2]
    assert points[1]["path_neurons"] == 24
    assert 0 <= points[3]["path_turnover"] < 1
    for point in points[1:]:
        layers = [point[f"path_concentration_layer_{layer:02d}"] for layer in (0, 1)]
        assert all(0.25 < share <= 1 for share in layers)
        assert point["path_concentration"] == pytest.approx(np.mean(layers))
        assert 0 < point["path_gradient_kept"] < 1
        assert point["path_facts"] > 0
    assert [point["attribution_time_share"] > 0 for point in points] == [False, True, False, True]


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "everything": lambda routing: routing | {"density": 1.0},
    "fewer": lambda routing: routing | {"density": 0.1},
    "full": lambda routing: routing | {"path": "full"},
    "narrow": lambda routing: routing | {"path": "full", "io_density": 0.1},
    "upper layer": lambda routing: routing | {"top_layers": 1},
    "feed-forward": lambda routing: routing | {"trainable": "ffn_only"},
    "average": lambda routing: routing | {"score_ema": 0.5},
    "once": lambda routing: routing | {"refresh_every": 100},
    "all facts": lambda routing: routing | {"sample_fraction": 1.0},
    "later": lambda routing: routing | {"start_step": 1},
    "off": lambda routing: routing | {"enabled": False},
}


@pytest.mark.slow
def test_no_setting_does_nothing(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Each gives other losses than all the others. "everything" is what "off" is, but for rounding."""
    seen = {}
    for name, change in ({"as it is": lambda routing: routing} | CHANGES).items():
        settings = without_dropout(config(1, routing=change({}), max_steps=6, checkpoint_every=6))
        train(settings, tiny_dataset, tmp_path / name, one_rank)
        seen[name] = tuple(point["mlm_loss"] for point in read_metrics(tmp_path / name))
    assert seen["everything"] == pytest.approx(seen.pop("off"), rel=1e-5)
    alike = [(a, b) for a in seen for b in seen if a < b and seen[a] == seen[b]]
    assert not alike


def test_what_a_continuation_must_share(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(), tiny_dataset, run, one_rank)
    message = fails(config(routing={"density": 0.3}), tiny_dataset, run, one_rank)
    assert "made with another routing.density (0.25, now 0.3)" in message


def test_a_run_of_an_earlier_version_is_refused(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """It drew the facts that attribution looks at by other random numbers."""
    run = tmp_path / "run"
    train(config(), tiny_dataset, run, one_rank)
    for folder in committed(run):
        info = read_verified(folder)
        del info.identity["routing.draws"]
        (folder / "manifest.json").write_text(info.to_json())
    assert "written by an earlier version, which drew routed facts otherwise" in fails(
        config(), tiny_dataset, run, one_rank
    )


def test_more_layers_than_there_are(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    message = fails(config(routing={"top_layers": 3}), tiny_dataset, tmp_path / "run", one_rank)
    assert message == "routing.top_layers: is 3, the model has 2 layers"


def test_compact_without_routing(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(routing={"enabled": False, "compact": True}, max_steps=1)
    with warns("routing.compact: is ignored, routing.enabled is false"):
        train(settings, tiny_dataset, tmp_path / "run", one_rank)


def test_nothing_asked_nothing_routed(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = replace(config(), selection=SelectionConfig(strategy="none"))
    with warns("routing.enabled: is ignored, no fact is asked"):
        train(settings, tiny_dataset, tmp_path / "run", one_rank)
    assert not (committed(tmp_path / "run")[0] / FOLDER).exists()
    rare = with_cka(config(), max_token_share=1e-9)  # asks, but hardly ever
    with warns("routing: at step 0 no fact was looked at, so all neurons are updated; raise routing.sample_fraction"):
        train(rare, tiny_dataset, tmp_path / "rare", one_rank)
    assert all("path_neurons" not in point for point in read_metrics(tmp_path / "rare"))


def test_scores_that_are_not_finite_choose_nothing(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Routing, *_: Any) -> NeuronScores:
        neurons = torch.ones(2, 48).index_fill(1, torch.tensor([3]), float("nan"))
        return NeuronScores(neurons, torch.ones(2, 32), torch.ones(2, 32), torch.ones(()))

    monkeypatch.setattr(Routing, "_attribute", broken)
    with warns("routing: at step 0 scores are not finite numbers"):
        train(config(max_steps=2), tiny_dataset, tmp_path / "run", one_rank)
    assert all("path_neurons" not in point for point in read_metrics(tmp_path / "run"))


def test_routing_that_is_off_may_have_any_settings(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(routing={"enabled": False}, max_steps=2), tiny_dataset, run, one_rank)
    train(config(routing={"enabled": False, "density": 0.5}), tiny_dataset, run, one_rank)
    assert len(read_metrics(run)) == 4
