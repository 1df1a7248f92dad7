"""The encoder, its feed-forward memory, the objectives, and Hugging Face import and export."""

from trelm_ds.model.assessing import ProductDecoder, Questions
from trelm_ds.model.encoder import Encoder, Injected
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import KeyValueFeedForward
from trelm_ds.model.hf import hf_names, load_config, load_encoder, load_pretrained, save_pretrained
from trelm_ds.model.masked_lm import DECODER, MaskedLanguageModel, MaskedLMOutput

__all__ = [
    "DECODER",
    "Encoder",
    "EncoderConfig",
    "Injected",
    "KeyValueFeedForward",
    "MaskedLMOutput",
    "MaskedLanguageModel",
    "ProductDecoder",
    "Questions",
    "hf_names",
    "load_config",
    "load_encoder",
    "load_pretrained",
    "save_pretrained",
]
