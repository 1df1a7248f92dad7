"""What fine-tuning takes from a Hugging Face folder, with an MLM head or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trelm_ds.corpus import load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.files import sha256_of
from trelm_ds.model import TOKENIZER_FILES, Encoder, Pooler, load_encoder, load_pooler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the model is read from. A result may lie in the folder as well, and must not make it another model.
_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin"),
    *(*TOKENIZER_FILES, "*.model"),
)


class PretrainedFolder(NamedTuple):
    """A pre-trained model.

    Attributes:
        pooler: None where the folder has none.
        digest: {file name: sha256} of the weights and of what describes them.
    """

    encoder: Encoder
    pooler: Pooler | None
    tokenizer: PreTrainedTokenizerBase
    digest: dict[str, str]


def open_pretrained(folder: Path) -> PretrainedFolder:
    """Load encoder, pooler and tokenizer of a BERT or RoBERTa folder.

    Raises:
        UserError: a part is missing or damaged, or tokenizer and model do not fit together.
    """
    encoder = load_encoder(folder)
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise UserError(str(error).removeprefix("--tokenizer: ")) from None
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model {encoder.config.vocab_size}")
    files = {path for pattern in _FILES for path in folder.glob(pattern)}
    digest = {path.name: sha256_of(path) for path in sorted(files)}
    return PretrainedFolder(encoder, load_pooler(folder), tokenizer, digest)
