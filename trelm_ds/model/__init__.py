"""The encoder, its feed-forward memory, the MLM objective, and Hugging Face import and export."""

from trelm_ds.model.encoder import Encoder
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import KeyValueFeedForward
from trelm_ds.model.hf import hf_names, load_config, load_encoder, load_pretrained, save_pretrained
from trelm_ds.model.masked_lm import MaskedLanguageModel, MaskedLMOutput

__all__ = [
    "Encoder",
    "EncoderConfig",
    "KeyValueFeedForward",
    "MaskedLMOutput",
    "MaskedLanguageModel",
    "hf_names",
    "load_config",
    "load_encoder",
    "load_pretrained",
    "save_pretrained",
]
