"""The order in which ZeRO 3 expects modules to run, by which it gathers weights ahead and keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def forget_order(engine: DeepSpeedEngine) -> None:
    """Let ZeRO 3 learn the order of modules from the next pass, as it must after passes without a backward one.

    From those it takes that no weight is needed a second time, and DeepSpeed 0.19 keeps that for good: which weights to
    release is cached by module and place. All would be gathered twice a pass, the second time when they are needed.
    Does nothing under other stages.
    """
    offload = getattr(engine.optimizer, "parameter_offload", None)
    if offload is None:
        return
    coordinator = offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    to_release: Any = getattr(coordinator, f"_{type(coordinator).__name__}__params_to_release", None)
    if hasattr(to_release, "cache_clear"):  # a private name: other versions may have another
        to_release.cache_clear()
