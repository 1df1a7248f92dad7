"""The DeepSpeed engine: its configuration, its optimizer, and how ZeRO lays parameters out over the ranks."""

from trelm_ds.engine.build import build_data_parallel, build_engine, parameter_groups
from trelm_ds.engine.compiling import compile_layers, compiled_graphs
from trelm_ds.engine.ds_config import resolve_ds_config
from trelm_ds.engine.model_parallel import mark_gradients
from trelm_ds.engine.module_order import forget_order
from trelm_ds.engine.schedule import Decay, decay_of
from trelm_ds.engine.skippable_adamw import SkippableAdamW
from trelm_ds.engine.zero_layout import Slot, base_optimizer, clear_padding, names_in_order, slots_of, word_embedding

__all__ = [
    "Decay",
    "SkippableAdamW",
    "Slot",
    "base_optimizer",
    "build_data_parallel",
    "build_engine",
    "clear_padding",
    "compile_layers",
    "compiled_graphs",
    "decay_of",
    "forget_order",
    "mark_gradients",
    "names_in_order",
    "parameter_groups",
    "resolve_ds_config",
    "slots_of",
    "word_embedding",
]
