"""The encoder, its feed-forward memory, the objectives, and Hugging Face import and export."""

from trelm_ds.model.assessing import ProductDecoder, Questions, answer_probabilities
from trelm_ds.model.attention import PackedLayout, Tail, packed_layout
from trelm_ds.model.encoder import Encoder, EncoderLayer, Injected
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.feed_forward import KeyValueFeedForward, Path
from trelm_ds.model.hf import hf_names, load_config, load_encoder, load_pretrained, save_pretrained
from trelm_ds.model.masked_lm import DECODER, MaskedLanguageModel, MaskedLMOutput

__all__ = [
    "DECODER",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Injected",
    "KeyValueFeedForward",
    "MaskedLMOutput",
    "MaskedLanguageModel",
    "PackedLayout",
    "Path",
    "ProductDecoder",
    "Questions",
    "Tail",
    "answer_probabilities",
    "hf_names",
    "load_config",
    "load_encoder",
    "load_pretrained",
    "packed_layout",
    "save_pretrained",
]
