"""Knowledge routing in a run: attribution on a sample of a step's facts, and the paths that follow from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from trelm_ds import faults, log
from trelm_ds.batches import Step
from trelm_ds.checkpoints import Captured, CheckpointInfo
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, import_deepspeed, join_parts
from trelm_ds.knowledge.tables import TableGroup
from trelm_ds.model import EncoderConfig, MaskedLanguageModel
from trelm_ds.routing import (
    QUADRATURES,
    ROUTING_FOLDER,
    KnowledgePaths,
    NeuronScores,
    attribute,
    frozen,
    no_scores,
    routed_facts,
    save_paths,
)
from trelm_ds.training.compact import CompactNeurons
from trelm_ds.training.component import Component
from trelm_ds.training.knowledge import Knowledge

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Routing(Component):
    """The paths of one run on one rank: the same on all ranks.

    Args:
        knowledge: by which mentions are injected in attribution as in training.
    """

    def __init__(self, config: Config, engine: DeepSpeedEngine, knowledge: Knowledge, ranks: Ranks) -> None:
        self._config, self._engine, self._knowledge, self._ranks = config, engine, knowledge, ranks
        self._sizes: EncoderConfig = engine.module.config
        self.paths = KnowledgePaths(config.routing, self._sizes, ranks.device)
        self._group = TableGroup.of(ranks.data)
        self.compact: CompactNeurons | None = None
        if config.routing.compact:
            device = torch.device("cpu") if config.routing.placement == "cpu" else ranks.device
            self.compact = CompactNeurons(engine, self.paths.first_layer, device, self._group)
        self._meanwhile = "a fixed set of neurons is" if self.compact else "all neurons are"
        self._seconds, self._warned = 0.0, False  # of attribution since the last log point

    def start(self) -> None:
        """Fill the table of the neurons off the path."""
        if self.compact is not None:
            self.compact.start()

    def refresh_due(self, steps_done: int) -> bool:
        """Whether neurons will move before the next step: what a checkpoint holds of them must be written by then."""
        return self.compact is not None and self._chooses(steps_done)

    def _chooses(self, steps_done: int) -> bool:
        since_start = steps_done - self._config.routing.start_step
        return since_start >= 0 and since_start % self._config.routing.refresh_every == 0

    def before_step(self, step: Step, steps_done: int) -> None:
        """Choose the paths anew where the schedule says so, by the facts that are marked in the step; collective."""
        # Not in `refresh`: it looks at the step's own facts, and what a checkpoint holds of the paths is never changed.
        engine = self._engine
        if not self._chooses(steps_done):
            return
        begun = self._now()
        with whole_weights(engine) as weights:
            scores = self._attribute(frozen(engine.module, weights), step)
        scores = self._of_all_ranks(scores)
        if all(bool(score.isfinite().all()) for score in scores):
            before = None if self.compact is None else self._neurons()
            self.paths.update(scores)
            if self.compact is not None and before is not None and self.paths.neurons is not None:
                self.compact.move(before, self.paths.neurons)
            self.paths.install(engine.module)
            self._warn_of_nothing(
                steps_done, f"no fact was looked at, so {self._meanwhile} updated; raise routing.sample_fraction"
            )
        else:
            self._warn_of_nothing(steps_done, "scores are not finite numbers, so there is no path yet")
        self._seconds += self._now() - begun
        faults.reach("routing-refreshed")

    def _of_all_ranks(self, scores: NeuronScores) -> NeuronScores:
        """Sum scores over the ranks, and put those of all neurons together where each rank has its own; collective."""
        for score in scores:
            self._group.sum(score)
        if (tensor := self._ranks.tensor) is not None:
            scores = scores._replace(neurons=join_parts(scores.neurons, tensor.group, dimension=1))
        for score in scores:
            dist.broadcast(score, src=0)  # ranks must not differ in a bit, or their neurons would
        return scores

    def _neurons(self) -> Tensor:
        """Return the neurons that compact layers follow now, int64 [L, S]."""
        layers = self._engine.module.encoder.blocks[self.paths.first_layer :]
        return torch.stack([layer.feed_forward.path.neurons for layer in layers])

    def _warn_of_nothing(self, step: int, reason: str) -> None:
        """Warn once, where a refresh has left the run without a path."""
        if self.paths.neurons is None and not self._warned:
            self._warned = True
            log.warning_rank0(f"routing: at step {step} {reason}")

    def _attribute(self, view: MaskedLanguageModel, step: Step) -> NeuronScores:
        routing, device = self._config.routing, self._ranks.device
        total = no_scores(view, self.paths.first_layer, device)
        for batch in step.micro_batches:
            part = routed_facts(batch)
            if part is None:
                continue
            found = attribute(
                view,
                part.to(device),
                quadrature=QUADRATURES[routing.quadrature],
                first_layer=self.paths.first_layer,
                max_tokens=self._config.trainer.micro_batch_tokens,
                with_coordinates=routing.path == "full",
                **self._knowledge.model_inputs(),
            )
            total = NeuronScores(*map(torch.add, total, found))
        return total

    def _now(self) -> float:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def metrics(self, seconds: float) -> dict[str, float]:
        """Measure the paths; collective."""
        paths = self.paths
        found = {"attribution_time_share": self._seconds / seconds}
        self._seconds = 0.0
        if paths.neurons is None or paths.scores is None:
            return found
        concentration = paths.concentration()
        found |= {
            "path_neurons": float(paths.neurons.numel()),
            "path_facts": float(paths.scores.facts),
            "path_concentration": sum(concentration) / len(concentration),
        }
        if paths.turnover is not None:
            found["path_turnover"] = paths.turnover
        for place, share in enumerate(concentration):
            found[f"path_concentration_layer_{paths.first_layer + place:02d}"] = share
        kept, whole = self._ranks.sum(*paths.norms.tolist())  # of all parts of the model, and as often of each
        paths.norms.zero_()
        if whole > 0:
            found["path_gradient_kept"] = (kept / whole) ** 0.5
        return found

    def describe(self) -> dict[str, str]:
        """Say what is updated."""
        routing, sizes = self._config.routing, self._sizes
        layers = sizes.num_hidden_layers - self.paths.first_layer
        every = f"chosen every {routing.refresh_every} steps by {routing.sample_fraction:.3g} of the facts"
        neurons = f"{routing.density:.3g} of {layers} x {sizes.intermediate_size:,} neurons"
        found = {"routing": f"{neurons} are updated, {every}"}
        if self.compact is not None:
            found["compact routing"] = f"the others are {self.compact.bytes / 1e6:,.1f} MB of this rank's table"
        return found

    def capture(self) -> Captured:
        """Give the paths for a checkpoint, from rank 0, and this rank's rows of the neurons off the path."""
        state = self.paths.state() if self._ranks.rank == 0 else {}
        compact = self.compact

        def write(checkpoint: Path) -> list[Path]:
            rows = compact.save(checkpoint / ROUTING_FOLDER) if compact is not None else []
            return [*save_paths(state, checkpoint / ROUTING_FOLDER), *rows]

        size = sum(tensor.nbytes for tensor in state.values()) + (compact.bytes if compact is not None else 0)
        return Captured(size, write, compact.weights if compact is not None else {})

    def load(self, checkpoint: Path, info: CheckpointInfo) -> None:
        """Read the paths from a checkpoint.

        Raises:
            UserError: they do not fit the model.
        """
        self.paths.load(checkpoint / ROUTING_FOLDER)
        self.paths.install(self._engine.module)
        if self.compact is not None:
            self.compact.load(checkpoint / ROUTING_FOLDER)


@contextlib.contextmanager
def whole_weights(engine: DeepSpeedEngine) -> Iterator[dict[str, Tensor]]:
    """Yield the model's weights by name; under ZeRO-3, which shards them over all ranks, whole for the time being."""
    parameters = dict(engine.module.named_parameters())
    compact = [module for module in engine.module.modules() if getattr(module, "whole", None)]
    with contextlib.ExitStack() as held:
        if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
            deepspeed = import_deepspeed()
            held.enter_context(deepspeed.zero.GatheredParameters(list(parameters.values())))
        found = {name: parameter.detach() for name, parameter in parameters.items()}
        for module in compact:
            module.write_back()
        buffers = dict(engine.module.named_buffers())
        yield found | {
            name.replace(".all_", "."): buffer for name, buffer in buffers.items() if ".feed_forward.all_" in name
        }
