"""The encoder, its key-value feed-forward, MLM head, Eq. 7 and Eq. 2, their FLOPs, Hugging Face import and export."""

from trelm_ds.model.assessing import Assessing, MentionDecoder, ProductDecoder, answer_bias, answer_probabilities
from trelm_ds.model.attention import PackedLayout, Tail, packed_layout
from trelm_ds.model.batch import AssessingBatch, Batch, KnowledgeItems, StepTables, map_tensors
from trelm_ds.model.cross_entropy import linear_cross_entropy
from trelm_ds.model.encoder import Encoder, EncoderLayer, initialize
from trelm_ds.model.encoder_config import EncoderConfig, check_sizes
from trelm_ds.model.feed_forward import KeyValueFeedForward, KnowledgePath, neuron_parts
from trelm_ds.model.flash import as_on_gpu
from trelm_ds.model.flops import PEAKS, Updated, Work, flops_per_token, peak_tflops, training_flops
from trelm_ds.model.hf import hf_shapes, load_config, load_encoder, load_pooler, load_pretrained
from trelm_ds.model.hf_export import TOKENIZER_FILES, save_pretrained
from trelm_ds.model.hf_names import hf_names
from trelm_ds.model.hf_weights import read_object
from trelm_ds.model.injection import Injected, injected, know_linear
from trelm_ds.model.masked_lm import EXPORTED, MaskedLanguageModel, ModelOutput
from trelm_ds.model.partition import WORD_EMBEDDING, check_degree, cut, join, partition_of
from trelm_ds.model.pooler import Pooler
from trelm_ds.model.sharing import make_tensor_parallel

__all__ = [
    "EXPORTED",
    "PEAKS",
    "TOKENIZER_FILES",
    "WORD_EMBEDDING",
    "Assessing",
    "AssessingBatch",
    "Batch",
    "Encoder",
    "EncoderConfig",
    "EncoderLayer",
    "Injected",
    "KeyValueFeedForward",
    "KnowledgeItems",
    "KnowledgePath",
    "MaskedLanguageModel",
    "MentionDecoder",
    "ModelOutput",
    "PackedLayout",
    "Pooler",
    "ProductDecoder",
    "StepTables",
    "Tail",
    "Updated",
    "Work",
    "answer_bias",
    "answer_probabilities",
    "as_on_gpu",
    "check_degree",
    "check_sizes",
    "cut",
    "flops_per_token",
    "hf_names",
    "hf_shapes",
    "initialize",
    "injected",
    "join",
    "know_linear",
    "linear_cross_entropy",
    "load_config",
    "load_encoder",
    "load_pooler",
    "load_pretrained",
    "make_tensor_parallel",
    "map_tensors",
    "neuron_parts",
    "packed_layout",
    "partition_of",
    "peak_tflops",
    "read_object",
    "save_pretrained",
    "training_flops",
]
