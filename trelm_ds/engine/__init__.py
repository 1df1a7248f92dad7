"""The DeepSpeed engine: its settings, its optimizer, and where ZeRO keeps which part of which parameter."""

from trelm_ds.engine.build import build_engine, resolve_ds_config
from trelm_ds.engine.skippable_adamw import SkippableAdamW
from trelm_ds.engine.zero_layout import base_optimizer, clear_padding, names_in_order, slots_of, word_embedding

__all__ = [
    "SkippableAdamW",
    "base_optimizer",
    "build_engine",
    "clear_padding",
    "names_in_order",
    "resolve_ds_config",
    "slots_of",
    "word_embedding",
]
