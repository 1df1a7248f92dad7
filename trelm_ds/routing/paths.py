"""The knowledge path of every layer (paper Eq. 12): chosen by score, followed in training, kept in checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trelm_ds.config import RoutingConfig
from trelm_ds.errors import UserError
from trelm_ds.model import EncoderConfig, KnowledgePath, MaskedLanguageModel, Updated
from trelm_ds.routing.attribution import NeuronScores

FOLDER, FILE = "routing", "paths.safetensors"  # in a checkpoint
NEURONS = "neurons"  # there, the table of compact routing


def first_layer(config: RoutingConfig, layers: int) -> int:
    """Return the lowest layer that has a path; those below are not updated."""
    return 0 if config.top_layers is None else layers - config.top_layers


class KnowledgePaths:
    """Which neurons of the upper L layers are updated, S of F in each; none until the first scores have come.

    Args:
        config: densities and scope.
        device: where the model lives.

    Attributes:
        scores: of the last refreshes as a moving average, each refresh as a mean over its facts; None at the start.
        neurons: int64 [L, S], ascending; likewise.
        turnover: share of the neurons that the last refresh exchanged; None before the second.
        norms: float32 [2], path full: squared norms of what the path keeps of its neurons' gradients, and of these.
    """

    def __init__(self, config: RoutingConfig, sizes: EncoderConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self.first_layer = first_layer(config, sizes.num_hidden_layers)
        self._sizes = sizes
        self.scores: NeuronScores | None = None
        self.neurons: Tensor | None = None
        self.turnover: float | None = None
        self.norms = torch.zeros(2, device=device)

    def update(self, found: NeuronScores) -> None:
        """Choose the paths anew.

        Args:
            found: sums over all ranks, the same on each. Without a fact, or a neuron that any fact comes from, the
                paths stay.
        """
        if not found.neurons.any():
            if self.scores is not None:
                self.scores, self.turnover = self.scores._replace(facts=found.facts), 0.0
            return
        new = NeuronScores._make([*(score / found.facts for score in found[:3]), found.facts])
        if self.scores is not None:
            old = self._config.score_ema
            mixed = [old * a + (1 - old) * b for a, b in zip(self.scores[:3], new[:3], strict=True)]
            new = NeuronScores._make([*mixed, found.facts])
        before, self.scores = self.neurons, new
        self.neurons = _top(new.neurons, self._config.density)
        if before is not None:
            stay = sum(int(torch.isin(a, b).sum()) for a, b in zip(self.neurons, before, strict=True))
            self.turnover = 1 - stay / before.numel()

    def install(self, model: MaskedLanguageModel) -> None:
        """Make the model's backward pass follow the paths."""
        if self.neurons is None or self.scores is None:
            return
        for place, neurons in enumerate(self.neurons):
            ffn = model.encoder.blocks[self.first_layer + place].feed_forward
            own = neurons[(neurons >= ffn.own.start) & (neurons < ffn.own.stop)] - ffn.own.start
            path = KnowledgePath(own)
            if self._config.path == "full":
                inputs, outputs = (self._coordinates(all_[place]) for all_ in (self.scores.inputs, self.scores.outputs))
                path = KnowledgePath(own, inputs, outputs, self.norms)
            ffn.path = path

    def _coordinates(self, scores: Tensor) -> Tensor:
        """Mark the kept coordinates by their scores [D]: bool [D]."""
        kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        kept[_top(scores[None], self._config.io_density)[0]] = True
        return kept

    def concentration(self) -> list[float]:
        """Return, for every layer, the share of all positive attribution that the neurons on its path have."""
        if self.scores is None or self.neurons is None:
            return []
        scores = self.scores.neurons
        on_path = scores.gather(1, self.neurons).sum(1)
        return (on_path / scores.sum(1).clamp(min=torch.finfo(scores.dtype).tiny)).tolist()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, which later refreshes do not change; empty before the first."""
        if self.scores is None or self.neurons is None:
            return {}
        state = {"path": self.neurons} | {f"score_{name}": score for name, score in self.scores._asdict().items()}
        if self.turnover is not None:
            state["turnover"] = torch.tensor(self.turnover, dtype=torch.float64)
        return state

    def load(self, folder: Path) -> None:
        """Restore the state from a checkpoint.

        Raises:
            UserError: the file does not fit the model.
        """
        if not (folder / FILE).is_file():  # of a run before its first refresh
            return
        state = read_paths(folder)
        layers = self._sizes.num_hidden_layers - self.first_layer
        expected = {
            "score_neurons": (layers, self._sizes.intermediate_size),
            "path": (layers, path_size(self._sizes.intermediate_size, self._config.density)),
        }
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                raise UserError(f"{folder / FILE}: {name} is {list(state[name].shape)}, the run has {list(shape)}")
        state = {name: tensor.to(self._device) for name, tensor in state.items()}
        self.neurons = state["path"]
        self.turnover = state["turnover"].item() if "turnover" in state else None
        self.scores = NeuronScores(*(state[f"score_{name}"] for name in NeuronScores._fields))


def first_neurons(neurons: int, chosen: int) -> Tensor:
    """Choose some of F neurons, int64 [chosen], before anything is known of them: evenly spread."""
    return torch.arange(chosen) * neurons // chosen


def save_paths(state: dict[str, Tensor], folder: Path) -> list[Path]:
    """Write a state of `KnowledgePaths`, if there is any; return the files.

    Raises:
        OSError: it cannot be written.
    """
    if not state:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, folder / FILE)
    except SafetensorError as error:  # what a full disk is to safetensors
        raise OSError(f"{folder / FILE}: {error}") from error
    return [folder / FILE]


def read_paths(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint's paths: "path" int64 [L, S], the scores as "score_neurons", ..., "turnover" if any.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        state: dict[str, Tensor] = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / FILE}: cannot be read: {' '.join(str(error).split())}") from None
    if missing := {"path", *(f"score_{field}" for field in NeuronScores._fields)} - state.keys():
        raise UserError(f"{folder / FILE}: lacks {', '.join(sorted(missing))}")
    return state


def path_size(size: int, density: float) -> int:
    """Return how many of `size` neurons or coordinates are on a path, at least one."""
    return max(1, round(density * size))


def updated_part(config: RoutingConfig, sizes: EncoderConfig, chosen: bool = True) -> Updated:
    """Say what gets gradients in a run with routing.

    Args:
        chosen: whether there is a path; without one all neurons get them, but for those that compact routing froze.
    """
    share = path_size(sizes.intermediate_size, config.density) / sizes.intermediate_size
    return Updated(
        neurons=share if chosen or config.compact else 1.0,
        first_layer=first_layer(config, sizes.num_hidden_layers),
        others=config.trainable == "all",
    )


def _top(scores: Tensor, density: float) -> Tensor:
    """Find the highest scores of each row [L, n]: their indices int64 [L, k], ascending."""
    # Sorted stably, so that equal scores, zeros above all, are chosen alike on every device.
    order = scores.sort(dim=1, descending=True, stable=True)[1]
    return order[:, : path_size(scores.shape[1], density)].sort(dim=1)[0]
