"""What a pass through the model holds and computes, found by running it on tensors without values.

The real model runs forward and backward under torch's FakeTensorMode, which knows shapes and storages only: nothing is
allocated, and every tensor's life is seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from trelm_ds.planning.hardware import Device

# Operations that only look at memory otherwise: no kernel runs.
_FREE = {"detach", "alias", "view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "split"}
_FREE |= {"split_with_sizes", "unbind", "squeeze", "unsqueeze", "as_strided", "_reshape_alias", "diagonal", "empty"}
_FREE |= {"empty_like", "new_empty", "lift_fresh"}
HeldAt = Callable[[np.ndarray, np.ndarray], np.ndarray]  # bytes held beside the passes, of `gradients` and `unread`
_BEYOND = 1.03  # peaks beyond the larger trace lie above the line, by up to so much where it was tried
_BACKWARD = 2.5  # attention's backward pass has five products for the forward pass's two: scores are computed again


class Trace(NamedTuple):
    """A forward and a backward pass of one micro-batch.

    Attributes:
        saved: bytes that the forward pass keeps for the backward pass, without parameters and inputs.
        live: int64 [E], whenever a tensor came into being, bytes of all that the passes hold, without what was there
            before and without finished gradients.
        gradients: int64 [E], bytes of the gradients that were finished by then.
        unread: bool [E], whether the passes had yet to read some parameter.
        flops: float64 [K], of every operation.
        moved: float64 [K], bytes that each reads and writes.
    """

    saved: int
    live: np.ndarray
    gradients: np.ndarray
    unread: np.ndarray
    flops: np.ndarray
    moved: np.ndarray

    def peak(self, held: HeldAt) -> int:
        """Return the most bytes at a time, with what is held at each beside."""
        return int((self.live + held(self.gradients, self.unread)).max())

    def seconds(self, device: Device, precision: str) -> float:
        """Time both passes by the roofline: every operation computes or moves, whichever takes longer."""
        computing, moving = self.flops / device.flops[precision], self.moved / device.bandwidth
        return float(np.maximum(np.maximum(computing, moving), device.launch_s).sum())


class Between(NamedTuple):
    """A micro-batch that was not traced, on the line through two that were."""

    low: Trace
    high: Trace
    share: float
    """0 at the low one, 1 at the high one; it may lie outside"""

    def _between(self, low: float, high: float) -> float:
        return max(0.0, low + self.share * (high - low))

    @property
    def saved(self) -> int:
        """Bytes, as of a `Trace`."""
        return round(self._between(self.low.saved, self.high.saved))

    def peak(self, held: HeldAt) -> int:
        """Return the most bytes at a time, as of a `Trace`."""
        margin = _BEYOND if self.share > 1 else 1.0
        return round(margin * self._between(self.low.peak(held), self.high.peak(held)))

    def seconds(self, device: Device, precision: str) -> float:
        """Time both passes, as of a `Trace`."""
        return self._between(self.low.seconds(device, precision), self.high.seconds(device, precision))


class _Watch(TorchDispatchMode):
    """Notes the life of every storage and the work of every operation while it is entered."""

    def __init__(self, parameters: list[nn.Parameter], known: Iterable[Tensor], attended: float) -> None:
        super().__init__()
        self._counts: dict[Any, Any] = (
            flop_registry
            | _FLOPS
            | {
                torch.ops.trelm.flash_attention: lambda query, *_, **__: _packed_attention_flops(attended, query),
                torch.ops.trelm.flash_attention_backward: (
                    lambda _, query, *__, **___: _BACKWARD * _packed_attention_flops(attended, query)
                ),
            }
        )
        self._sizes: dict[int, int] = {}
        self._saved: set[int] = set()
        self.now, self.finished = 0, 0
        self.live: list[int] = []
        self.gradients: list[int] = []
        self.unread: list[bool] = []
        self.flops: list[float] = []
        self.moved: list[float] = []
        self._unread = {tensor.untyped_storage()._cdata for tensor in parameters}
        for tensor in (*parameters, *known):
            self._see(tensor, counted=False)

    @property
    def saved(self) -> int:
        """Bytes that are saved for a backward pass and alive."""
        return sum(self._sizes[key] for key in self._saved if key in self._sizes)

    def save(self, tensor: Tensor) -> Tensor:
        """Note that autograd saves a tensor."""
        self._saved.add(tensor.untyped_storage()._cdata)
        return tensor

    def finish(self, parameter: Tensor) -> None:
        """Take a parameter's gradient out of what is live: whether it is kept is the caller's question."""
        assert parameter.grad is not None
        self.finished += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None

    def _see(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self.now += self._sizes[key]
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        self._saved.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self._unread:
            self._unread.difference_update(tensor.untyped_storage()._cdata for tensor in given)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        before = self.now
        for tensor in made:
            self._see(tensor)
        if self.now > before:
            self.live.append(self.now)
            self.gradients.append(self.finished)
            self.unread.append(bool(self._unread))
        if made and func.overloadpacket.__name__ not in _FREE:
            self.moved.append(float(sum(_touched(func, tensor, made) for tensor in given) + sum(map(_bytes, made))))
            count = self._counts.get(func.overloadpacket)
            self.flops.append(float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0)
        return out


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _touched(func: Any, tensor: Tensor, made: list[Tensor]) -> int:
    """Return how much of an input is read: of a table that rows are looked up in, as much as comes out."""
    looked_up = func.overloadpacket.__name__ in ("embedding", "index_select", "gather")
    return min(_bytes(tensor), _bytes(made[0])) if looked_up else _bytes(tensor)


def _path_gradient_flops(chosen: Tensor, other: Tensor, rows: Tensor, *_: Any, **__: Any) -> int:
    """Count the product of the S chosen columns of [T, F] and [T, D]."""
    return 2 * chosen.shape[0] * len(rows) * other.shape[1]


def _addmm_flops(_: Tensor, left: Tensor, right: Tensor, **__: Any) -> int:
    return 2 * left.shape[0] * left.shape[1] * right.shape[1]


def _padded_attention_flops(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Count both products of [B, H, S, d] and [B, H, S', d]."""
    batch, heads, length, size = query.shape
    return 4 * batch * heads * length * key.shape[2] * size


def _padded_attention_backward_flops(_: Tensor, query: Tensor, key: Tensor, *__: Any, **___: Any) -> int:
    return round(_BACKWARD * _padded_attention_flops(query, key))


def _packed_attention_flops(attended: float, query: Tensor) -> float:
    """Count both products of [Q, H, d] with the tokens that each attends to."""
    return 4 * query.numel() * attended


_FLOPS = {
    torch.ops.trelm.path_weight_gradient: _path_gradient_flops,
    torch.ops.aten.addmm_: _addmm_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _padded_attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _padded_attention_backward_flops,
}


def trace(model: nn.Module, *inputs: Any, attended: float = 0.0) -> Trace:
    """Run a micro-batch forward and backward.

    Under FakeTensorMode, in which model and inputs have been made, nothing is computed.

    Args:
        model: returns a `ModelOutput`.
        inputs: of its forward.
        attended: how many tokens a token attends to on average, which shapes do not tell in packed attention.
    """
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    watch = _Watch(list(model.parameters()), [*model.buffers(), *given], attended)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(watch.finish) for parameter in trained]
    try:
        with watch, torch.autograd.graph.saved_tensors_hooks(watch.save, lambda tensor: tensor):
            losses = list(model(*inputs).losses.values())
            loss = sum(losses[1:], losses[0])
            saved = watch.saved
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(
        saved=saved,
        live=np.array(watch.live),
        gradients=np.array(watch.gradients),
        unread=np.array(watch.unread),
        flops=np.array(watch.flops),
        moved=np.array(watch.moved),
    )
