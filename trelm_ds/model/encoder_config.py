"""Sizes of the encoder, under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trelm_ds.config import ModelConfig
from trelm_ds.errors import UserError

ARCHITECTURES = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}
# Models of other names that compute what RoBERTa computes, with the same names of weights.
_SAME_AS = {"xlm-roberta": "roberta", "camembert": "roberta"}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

# What Hugging Face assumes where config.json is silent; RoBERTa differs from BERT only in these two.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
_ROBERTA_DEFAULTS = {"vocab_size": 50265, "pad_token_id": 1}

# Beyond any model; a damaged or hostile file must not take all memory or run for ever.
_MOST = {
    "vocab_size": 100_000_000,
    "hidden_size": 1_000_000,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1_000_000,
    "intermediate_size": 10_000_000,
    "max_position_embeddings": 100_000_000,
    "type_vocab_size": 1_000_000,
}

# Settings that change what the model computes and that this encoder does not have: (key, the value it stands for).
_FIXED = (
    ("position_embedding_type", "absolute"),
    ("is_decoder", False),
    ("add_cross_attention", False),
    ("tie_word_embeddings", True),
)


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes the encoder's parameters and what it computes.

    Raises:
        UserError: where a value is out of range.
    """

    architecture: str
    """"bert" or "roberta": they differ in position numbering and in the names of their weights"""
    vocab_size: int
    """V"""
    hidden_size: int
    """D"""
    num_hidden_layers: int
    """L"""
    num_attention_heads: int
    """H; divides hidden_size"""
    intermediate_size: int
    """F"""
    max_position_embeddings: int
    """longest document in tokens (RoBERTa's config.json counts its unused first rows too: pad_token_id + 1 more)"""
    type_vocab_size: int
    """rows of the token-type table; pre-training uses type 0 only"""
    hidden_act: str
    """activation of the feed-forward, and of BERT's MLM head (RoBERTa's head always has gelu)"""
    layer_norm_eps: float
    """epsilon of every LayerNorm"""
    hidden_dropout_prob: float
    """dropout after embeddings, attention output and feed-forward"""
    attention_probs_dropout_prob: float
    """dropout on attention probabilities"""
    pad_token_id: int
    """the token whose embedding starts at zero and is not trained by the lookup"""
    initializer_range: float
    """standard deviation of fresh weights"""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"architecture: must be one of {', '.join(ARCHITECTURES)}, got '{self.architecture}'")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act: must be one of {', '.join(ACTIVATIONS)}, got '{self.hidden_act}'")
        check_sizes(asdict(self))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}: must be at least 0 and less than 1, got {getattr(self, name)}")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < 1000:
                raise UserError(f"{name}: must be greater than 0 and a small number, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"num_attention_heads: must divide hidden_size {self.hidden_size}, got {self.num_attention_heads}"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(f"pad_token_id: must lie in the vocabulary of {self.vocab_size}, got {self.pad_token_id}")

    @property
    def position_offset(self) -> int:
        """Number of the first position: RoBERTa starts counting behind its padding position."""
        return self.pad_token_id + 1 if self.architecture == "roberta" else 0

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> EncoderConfig:
        """Read the content of a Hugging Face config.json.

        Raises:
            UserError: for another kind of model than BERT or RoBERTa, or a variant this encoder does not compute.
        """
        given = hf.get("model_type")
        kind = _SAME_AS.get(given, given) if isinstance(given, str) else given
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            raise UserError(f"model_type: must be one of {', '.join((*ARCHITECTURES, *_SAME_AS))}, got {_short(given)}")
        for name, value in _FIXED:
            if hf.get(name, value) != value:
                raise UserError(f"{name}: only {value!r} is supported, got {_short(hf[name])}")
        defaults = _DEFAULTS | (_ROBERTA_DEFAULTS if kind == "roberta" else {})
        values = {name: hf.get(name, default) for name, default in defaults.items()}
        for name, default in defaults.items():
            expected = str if isinstance(default, str) else (int, float) if isinstance(default, float) else int
            if not isinstance(values[name], expected) or isinstance(values[name], bool):
                raise UserError(f"{name}: expected a {type(default).__name__}, got {_short(values[name])}")
        if kind == "roberta":
            values["max_position_embeddings"] -= values["pad_token_id"] + 1
        return cls(architecture=kind, **values)

    @classmethod
    def from_settings(cls, settings: ModelConfig, vocab_size: int, pad_token_id: int) -> EncoderConfig:
        """Take the sizes of a fresh encoder from the run's configuration and its tokenizer."""
        roberta = settings.architecture == "roberta"
        return cls(
            architecture=settings.architecture,
            vocab_size=vocab_size,
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            intermediate_size=settings.intermediate_size,
            max_position_embeddings=settings.max_position_embeddings,
            type_vocab_size=1 if roberta else 2,
            hidden_act="gelu",
            layer_norm_eps=1e-5 if roberta else 1e-12,
            hidden_dropout_prob=settings.hidden_dropout_prob,
            attention_probs_dropout_prob=settings.attention_probs_dropout_prob,
            pad_token_id=pad_token_id,
            initializer_range=0.02,
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of a Hugging Face config.json."""
        values = asdict(self)
        kind = values.pop("architecture")
        values["max_position_embeddings"] += self.position_offset
        return {"architectures": [ARCHITECTURES[kind]], "model_type": kind, **values}


def check_sizes(content: Mapping[str, Any]) -> None:
    """Check the sizes that a model's configuration names, of whatever kind it is.

    Raises:
        UserError: one is beyond any model.
    """
    for name, most in _MOST.items():
        value = content.get(name)
        if isinstance(value, int) and not 1 <= value <= most:
            raise UserError(f"{name}: must be at least 1 and at most {most}, got {_short(value)}")


def _short(value: Any) -> str:
    """Show a value of a file, which may be of any size, in a message."""
    try:
        return repr(value)[:60]
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"
