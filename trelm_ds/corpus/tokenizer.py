"""Tokenizers: loaded from a folder or trained on the corpus, and which of their tokens begin a word."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trelm_ds.corpus.tokenizer_files import SPECIALS, VOCABULARIES, read_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, write_atomically
from trelm_ds.shards import Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
_WORD_MARKS = {"ByteLevel": "Ġ", "Metaspace": "▁"}  # prefix of tokens that begin a word, by the step that adds it
_NO_CHARACTER = "\ufffd"
_LETTERS = 1000  # the most frequent letters form the alphabet; all others become [UNK], as in BERT


@dataclass(frozen=True)
class TokenizerInfo:
    """What shards and training need to know about a tokenizer, as plain numbers without a library object.

    Attributes:
        sha256: hash of the vocabulary (token -> id); equal for the same tokenizer stored in different file formats.
        vocab_size: V.
        pad, unk, cls, sep, mask: ids of the special tokens.
    """

    sha256: str
    vocab_size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, manifest: Manifest) -> TokenizerInfo:
        """Read what a dataset's manifest says of its tokenizer.

        Raises:
            UserError: it says something else.
        """
        given = manifest.tokenizer
        if set(given) != {item.name for item in dataclasses.fields(cls)} or not all(
            isinstance(value, str if name == "sha256" else int) for name, value in given.items()
        ):
            raise UserError("manifest.json: damaged, 'tokenizer' has other values; run `trelm prepare` again")
        return cls(**given)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens."""
        return self.pad, self.unk, self.cls, self.sep, self.mask


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer from files in `folder`: tokenizer.json, or vocab.txt, or vocab.json and merges.txt.

    Raises:
        UserError: the folder is missing, holds no tokenizer, or one without the special tokens BERT and RoBERTa need.
    """
    if not folder.is_dir():
        raise UserError(f"--tokenizer: {folder} is not a folder (or say 'train' to train one on the corpus)")
    tokenizer = read_tokenizer(folder)
    missing = [special for special in SPECIALS if getattr(tokenizer, f"{special}_token_id") is None]
    if missing or not tokenizer.is_fast:
        problem = f"has no {missing[0]} token" if missing else "is not a fast tokenizer (character offsets are needed)"
        raise UserError(f"--tokenizer: {folder} {problem}")
    vocabulary = dict(sorted(tokenizer.get_vocab().items()))  # for messages: it comes in any order
    tokens = {number: token for token, number in vocabulary.items()}
    if twice := next((token for token, number in vocabulary.items() if tokens[number] != token), None):
        also = tokens[vocabulary[twice]]
        raise UserError(f"--tokenizer: {folder}: '{twice}' and '{also}' have the same number {vocabulary[twice]}")
    if max(tokens) >= len(tokenizer):
        raise UserError(f"--tokenizer: {folder}: its ids have gaps; number the tokens from 0 on without blank lines")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in model["vocab"]:  # with the first such word, encoding would fail
        raise UserError(f"--tokenizer: {folder}: its vocabulary lacks {unknown}, the token of unknown words")
    word_starts(tokenizer)  # refuses unsupported kinds of tokenizer
    return tokenizer


def train_tokenizer(texts: Callable[[], Iterator[str]], vocab_size: int, folder: Path) -> None:
    """Train an uncased WordPiece tokenizer like BERT's and write it to `folder`; equal texts give equal files.

    Args:
        texts: starts a pass over the corpus; called twice.
        vocab_size: maximum size of the vocabulary.
        folder: created if needed.

    Raises:
        UserError: the vocabulary is too small for the letters of the corpus.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    specials = {name: f"[{name.upper()}]" for name in SPECIALS}
    core = Tokenizer(models.WordPiece(unk_token=specials["unk"], max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters: Counter[str] = Counter()
    for text in texts():
        letters.update(core.normalizer.normalize_str(text))
    common = sorted(letters, key=lambda letter: (-letters[letter], letter))[:_LETTERS]
    alphabet = sorted(letter for letter in common if not letter.isspace())
    if vocab_size < (least := len(specials) + 2 * len(alphabet)):
        raise UserError(f"--vocab-size: must be at least {least} for the letters of this corpus, got {vocab_size}")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        # The library numbers continuation letters in the order of a hash map and breaks ties by number, so without this
        # list the vocabulary would differ from run to run. Only this temporary object treats them as special.
        special_tokens=[*specials.values(), *(f"##{letter}" for letter in alphabet)],
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    vocabulary = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token in vocabulary))
    BertTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)  # adds [CLS] and [SEP]


def describe(tokenizer: PreTrainedTokenizerBase) -> TokenizerInfo:
    """Extract what shards and training need to know about a tokenizer."""
    digest = hashlib.sha256(canonical_json(tokenizer.get_vocab()).encode()).hexdigest()
    ids: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIALS}
    return TokenizerInfo(sha256=digest, vocab_size=len(tokenizer), **ids)


def check_vocabulary(setting: str, folder: Path, vocab_size: int, info: TokenizerInfo) -> None:
    """Refuse a model whose vocabulary does not match the dataset's.

    Args:
        setting: the setting or option that named the model, for the message.
        folder: the model's folder, possibly with tokenizer files.
        vocab_size: size of the model's vocabulary.
        info: the dataset's tokenizer.

    Raises:
        UserError: the model has too few rows, or the folder holds another tokenizer.
    """
    if vocab_size < info.vocab_size:
        raise UserError(
            f"{setting}: {folder} has {vocab_size} tokens, the dataset's tokenizer {info.vocab_size}; "
            "prepare the dataset with that model's tokenizer"
        )
    if any((folder / name).is_file() for name in VOCABULARIES):
        own = describe(load_tokenizer(folder))
        if own.sha256 != info.sha256:
            raise UserError(f"{setting}: {folder} has another tokenizer than the dataset; prepare with that one")


def load_core(folder: Path) -> Tokenizer:
    """Load the core of a tokenizer saved to `folder`: all that worker processes need, and much faster to load."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode_literally(core: Tokenizer) -> None:
    """Disable truncation and padding, and encode "[MASK]" in a text as three words, not as the special token."""
    core.no_truncation()  # a tokenizer.json may have either switched on
    core.no_padding()
    core.encode_special_tokens = True


def tokenization_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that determines how text becomes tokens: vocabulary, merges, normalizer, pre-tokenizer."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Mark the tokens that begin a word, bool [V].

    WordPiece marks continuations with ##; byte-level BPE marks beginnings with Ġ, SentencePiece with ▁. Special tokens
    begin a word and, where beginnings are marked, so do punctuation and symbols. Byte-level BPE splits between bytes: a
    token that begins with part of a character continues a word, unless that character cannot be a letter.

    Raises:
        UserError: another kind of tokenizer.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    starts = np.ones(len(tokenizer), dtype=bool)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = json.dumps([core["pre_tokenizer"], core["normalizer"]])
    mark = next((mark for name, mark in _WORD_MARKS.items() if f'"{name}"' in steps), None)
    prefix = core["model"].get("continuing_subword_prefix")
    if mark is None and (core["model"]["type"] != "WordPiece" or not prefix):
        kinds = ", ".join(_WORD_MARKS)
        raise UserError(f"--tokenizer: neither WordPiece nor one with {kinds}, so that words cannot be told apart")
    bytes_of = {letter: bytes([number]) for number, letter in bytes_to_unicode().items()} if mark == "Ġ" else {}
    for token, number in tokenizer.get_vocab().items():
        if mark is None:
            starts[number] = not token.startswith(prefix)
        else:
            text = b"".join(bytes_of.get(letter, letter.encode()) for letter in token)
            starts[number] = token.startswith(mark) or _outside_words(text)
    starts[list(describe(tokenizer).special_ids)] = True
    return starts


def inverse_marker(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the tokens, int64 [n], that precede a relation's name where it is read from tail to head."""
    return np.array(tokenizer.encode(" inverse of", add_special_tokens=False), dtype=np.int64)


def _outside_words(start: bytes) -> bool:
    """Tell whether UTF-8 text with this start begins with something other than a letter, mark or digit."""
    first = start.decode(errors="replace")[:1]
    if first == _NO_CHARACTER:
        try:  # if only the last byte of a character is missing, consider every possible one
            first = "".join((start + bytes([last])).decode() for last in range(0x80, 0xC0))
        except UnicodeDecodeError:
            return False
    return all(unicodedata.category(letter)[0] not in "LMN" for letter in first)
