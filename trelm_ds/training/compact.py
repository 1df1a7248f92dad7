"""Compact routing: the neurons off the path, with their optimizer state, in a table over the ranks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.distributed import import_deepspeed
from trelm_ds.engine import Slot, base_optimizer, slots_of
from trelm_ds.knowledge.tables import ShardedTable, TableGroup
from trelm_ds.model import KeyValueFeedForward, KnowledgePath, neuron_parts
from trelm_ds.routing import NEURONS_TABLE

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

UPDATES = "neuron-updates"  # in a checkpoint, beside NEURONS_TABLE
MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("keys", "key_bias", "values")


def compact_bytes(neurons: int, size: int, ranks: int) -> int:
    """Compute the bytes of a rank's shards of the two tables below.

    Args:
        neurons: of all layers together.
        size: hidden size D.
        ranks: that share the tables.
    """
    width = 2 * size + 1
    return -(-neurons // ranks) * 4 * (3 * width + (width + 1) // 2)


class CompactNeurons:
    """All F neurons of the L routed layers: fp32 weights, both moments and numbers of updates, as rows of a table.

    Row `layer * F + neuron` holds (keys, key_bias, values) three times, for weight and moments, and in a second table
    the numbers of updates, two int16 in an int32, because no backend exchanges int16. The rows of the neurons on the
    path are old: parameters and optimizer have them.

    Args:
        engine: with compact layers (`KeyValueFeedForward.make_compact`).
        first_layer: the lowest of them.
        device: where the table lives.
        group: the ranks that share it.
    """

    def __init__(self, engine: DeepSpeedEngine, first_layer: int, device: torch.device, group: TableGroup) -> None:
        self._engine, self._first, self._group = engine, first_layer, group
        self._layers: list[KeyValueFeedForward] = [
            layer.feed_forward for layer in engine.module.encoder.blocks[first_layer:]
        ]
        for layer in self._layers:  # DeepSpeed has brought the parameters alone to the precision of the run
            for part in _PARTS:
                setattr(layer, f"all_{part}", getattr(layer, f"all_{part}").to(getattr(layer, part).dtype))
        whole = self._layers[0].whole
        assert whole is not None
        for layer in self._layers:  # the first path is no buffer, so it has stayed on the CPU
            assert layer.path is not None
            layer.path = KnowledgePath(layer.path.neurons.to(whole[0].device))
        self.neurons, self._size = whole[0].shape
        self.width = 2 * self._size + 1
        rows = len(self._layers) * self.neurons
        self.table = ShardedTable(rows, 3 * self.width, torch.float32, device, group)
        self.updates = ShardedTable(rows, (self.width + 1) // 2, torch.int32, device, group)

    @property
    def bytes(self) -> int:
        """Size of this rank's shards in bytes."""
        return self.table.bytes + self.updates.bytes

    @property
    def weights(self) -> dict[str, Tensor]:
        """This rank's weights and moments, float32 [R_local, 3 W], by their name in a checkpoint."""
        return {NEURONS_TABLE: self.table.local}

    def start(self) -> None:
        """Fill the table from the layers' buffers."""

        def values_of(rows: Tensor) -> Tensor:
            values = torch.zeros(len(rows), 3 * self.width)
            for place, layer in enumerate(self._layers):
                mine = rows // self.neurons == place
                keys, bias, values_ = layer.whole  # type: ignore[misc]
                chosen = (rows[mine] % self.neurons).to(keys.device)
                whole = torch.cat([keys[chosen], bias[chosen, None], values_[chosen]], dim=1)
                values[mine, : self.width] = whole.float().cpu()
            return values

        self.table.fill(values_of)

    def move(self, before: Tensor, after: Tensor) -> None:
        """Write the neurons of one path into the table, and make those of another the parameters; collective.

        The layers' paths stay the caller's.

        Args:
            before, after: int64 [L, S].
        """
        if torch.equal(before, after):  # a refresh without a fact, above all
            return
        self.write_back()
        slots = self._slots()
        for place in range(len(self._layers)):
            weights, updates = self._collect(place, before.shape[1], slots)
            self._keep(place * self.neurons + before[place].cpu(), weights, updates)
        for place in range(len(self._layers)):
            rows = place * self.neurons + after[place].cpu()
            found = self.table.start_lookup(rows).wait(), self.updates.start_lookup(rows).wait()
            self._hand_out(place, found[0], found[1].view(torch.int16)[:, : self.width], slots)

    def write_back(self) -> None:
        """Bring the layers' buffers up to date with the parameters; collective under ZeRO 3."""
        deepspeed = import_deepspeed()
        for layer in self._layers:
            with deepspeed.zero.GatheredParameters([getattr(layer, part) for part in _PARTS]):
                layer.write_back()

    def save(self, folder: Path) -> list[Path]:
        """Write this rank's shards; return the files."""
        return [self.table.save(folder, NEURONS_TABLE), self.updates.save(folder, UPDATES)]

    def load(self, folder: Path) -> None:
        """Load this rank's rows, and the layers' buffers, from what any number of ranks saved.

        Raises:
            UserError: a shard is missing, cannot be read, or belongs to another model.
        """
        self.updates.load(folder, UPDATES)
        for rows, weights in self.table.load_showing(folder, NEURONS_TABLE, self.width):
            for place, layer in enumerate(self._layers):
                mine = rows // self.neurons == place
                for name, part in neuron_parts(weights[mine]).items():
                    whole: Tensor = getattr(layer, f"all_{name}")
                    whole[(rows[mine] % self.neurons).to(whole.device)] = part.to(whole)

    # --- Between table and optimizer ---
    def _slots(self) -> dict[str, list[Slot]]:
        found = defaultdict(list)
        for slot in slots_of(self._engine):
            found[slot.name].append(slot)
        return found

    def _name(self, place: int, part: str) -> str:
        return f"encoder.layers.{self._first + place}.feed_forward.{part}"

    def _collect(self, place: int, chosen: int, slots: dict[str, list[Slot]]) -> tuple[Tensor, Tensor]:
        """Assemble the state of a layer's parameters on every rank: float32 [S, 3 W] and int16 [S, W]; collective."""
        optimizer, pieces = base_optimizer(self._engine), []
        for part, width in zip(_PARTS, (self._size, 1, self._size), strict=True):
            whole = torch.zeros(4, chosen * width, dtype=torch.int32, device=self.table.local.device)
            for slot in slots[self._name(place, part)]:
                state, here = optimizer.state.get(slot.master, {}), slice(slot.start, slot.start + slot.size)
                whole[0, here] = slot.of(slot.master).float().view(torch.int32).to(whole)
                for row, key in enumerate(MOMENTS, 1):
                    if key in state:
                        whole[row, here] = slot.of(state[key]).float().view(torch.int32).to(whole)
                if "updates" in state:
                    whole[3, here] = slot.of(state["updates"]).to(whole)
            # Summed as integers: of each number all ranks but one have no bit, so that it comes through bit for bit.
            if self._engine.zero_optimization_stage() and self._group.world_size > 1:
                dist.all_reduce(whole, group=self._group.group_for(whole.device))
            pieces.append(whole.view(4, chosen, width))
        state = torch.cat(pieces, dim=2)
        return state[:3].contiguous().view(torch.float32).transpose(0, 1).flatten(1), state[3].to(torch.int16)

    def _keep(self, rows: Tensor, weights: Tensor, updates: Tensor) -> None:
        """Write rows that all ranks have into this rank's shards."""
        mine = rows % self._group.world_size == self._group.rank
        places, own = self.table.place(rows[mine]), mine.to(weights.device)
        self.table.local[places] = weights[own]
        self.updates.local[places] = F.pad(updates[own], (0, self.width % 2)).view(torch.int32)

    def _hand_out(self, place: int, weights: Tensor, updates: Tensor, slots: dict[str, list[Slot]]) -> None:
        """Put rows [S, 3 W], [S, W] into a layer's parameters, their masters and the optimizer's state."""
        deepspeed, optimizer = import_deepspeed(), base_optimizer(self._engine)
        of_kind = [neuron_parts(kind) for kind in (*weights.split(self.width, dim=1), updates)]
        for part in _PARTS:
            flat = [kind[part].reshape(-1) for kind in of_kind]
            for slot in slots[self._name(place, part)]:
                here = slice(slot.start, slot.start + slot.size)
                slot.of(slot.master).copy_(flat[0][here])
                state = optimizer.state.get(slot.master, {})
                for key, values in zip((*MOMENTS, "updates"), flat[1:], strict=True):
                    if key in state:
                        slot.of(state[key]).copy_(values[here])
            parameter = getattr(self._layers[place], part)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self._group.rank == 0 or not hasattr(parameter, "ds_id"):
                    parameter.data.copy_(flat[0].view(parameter.shape))
