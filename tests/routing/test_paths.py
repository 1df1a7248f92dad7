from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.routing.test_attribution import build, sizes
from trelm_ds.config import RoutingConfig
from trelm_ds.errors import UserError
from trelm_ds.model import Updated
from trelm_ds.routing import KnowledgePaths, NeuronScores, read_paths, save_paths, updated_part
from trelm_ds.routing.paths import FILE


def paths(**settings: object) -> KnowledgePaths:
    return KnowledgePaths(RoutingConfig(density=0.25, **settings), sizes(), torch.device("cpu"))  # type: ignore[arg-type]


def scores(seed: int, facts: int = 4) -> NeuronScores:
    draw = torch.Generator().manual_seed(seed)
    neurons, inputs, outputs = (torch.rand(3, size, generator=draw) for size in (24, 16, 16))
    return NeuronScores(neurons, inputs, outputs, torch.tensor(float(facts)))


def test_the_highest_are_chosen_and_of_equal_ones_the_first() -> None:
    ours, found = paths(), scores(0)
    found.neurons[0] = 0
    found.neurons[0, 7] = 1
    ours.update(found)
    assert ours.neurons is not None
    assert ours.neurons[0].tolist() == [0, 1, 2, 3, 4, 7]
    for layer in (1, 2):
        best = sorted(range(24), key=lambda neuron: -found.neurons[layer, neuron])[:6]
        assert ours.neurons[layer].tolist() == sorted(best)
    assert ours.concentration()[0] == 1


def test_a_moving_average_of_means_over_facts() -> None:
    ours = paths(score_ema=0.75)
    ours.update(scores(0, facts=4))
    ours.update(scores(1, facts=2))
    assert ours.scores is not None
    expected = 0.75 * scores(0).neurons / 4 + 0.25 * scores(1).neurons / 2
    torch.testing.assert_close(ours.scores.neurons, expected)


def test_turnover_counts_what_has_left() -> None:
    ours = paths()
    first, second = scores(0), scores(0)
    first.neurons[:, :6] = 9.0
    second.neurons[:, 3:9] = 9.0
    ours.update(first)
    assert ours.turnover is None
    ours.update(second)
    assert ours.turnover == pytest.approx(0.5)


@pytest.mark.parametrize("facts", [0, 3])
def test_a_refresh_that_finds_nothing_leaves_the_path(facts: int) -> None:
    ours = paths()
    nothing = NeuronScores(*(torch.zeros_like(score) for score in scores(0)[:3]), torch.tensor(float(facts)))
    ours.update(nothing)
    assert ours.neurons is None
    ours.update(scores(0))
    before = ours.neurons
    ours.update(nothing)
    assert ours.neurons is before
    assert ours.scores is not None
    assert torch.equal(ours.scores.neurons, scores(0).neurons / 4)
    assert (ours.scores.facts.item(), ours.turnover) == (facts, 0.0)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    save_paths(paths().state(), tmp_path)  # nothing before the first refresh
    assert not (tmp_path / FILE).exists()
    ours, again = paths(), paths()
    again.load(tmp_path)
    assert again.neurons is None
    for refresh in range(2):
        ours.update(scores(refresh))
        save_paths(ours.state(), tmp_path)
        again = paths()
        again.load(tmp_path)
        assert again.turnover == ours.turnover
        assert ours.neurons is not None
        assert again.neurons is not None
        assert torch.equal(again.neurons, ours.neurons)
        assert again.concentration() == ours.concentration()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    ours = paths()
    ours.update(scores(0))
    save_paths(ours.state(), tmp_path)
    other = KnowledgePaths(RoutingConfig(density=0.5), sizes(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"path is \[3, 6\], the run has \[3, 12\]"):
        other.load(tmp_path)
    save_file({"path": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(UserError, match="lacks score_facts, score_inputs, score_neurons, score_outputs"):
        read_paths(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read_paths(tmp_path)


def test_full_keeps_the_best_coordinates() -> None:
    ours, found, model = paths(path="full", io_density=0.25, top_layers=3), scores(0), build(sizes())
    ours.update(found)
    ours.install(model)
    for number, layer in enumerate(model.encoder.layers):
        path = layer.feed_forward.path
        assert path.inputs.nonzero()[:, 0].tolist() == sorted(found.inputs[number].topk(4)[1].tolist())
        assert path.outputs.nonzero()[:, 0].tolist() == sorted(found.outputs[number].topk(4)[1].tolist())


def test_what_is_updated_in_a_run() -> None:
    """Of 24 neurons a quarter, in the upper layers of 3; before the first path all, unless they were frozen."""
    upper = RoutingConfig(density=0.25, top_layers=1)
    assert updated_part(upper, sizes()) == Updated(neurons=0.25, first_layer=2)
    assert updated_part(upper, sizes(), chosen=False) == Updated(neurons=1.0, first_layer=2)
    compact = RoutingConfig(density=0.25, compact=True, trainable="ffn_only")
    for chosen in (False, True):
        assert updated_part(compact, sizes(), chosen) == Updated(neurons=0.25, others=False)
    assert updated_part(RoutingConfig(density=0.1), sizes()).neurons == 2 / 24  # of whole neurons
