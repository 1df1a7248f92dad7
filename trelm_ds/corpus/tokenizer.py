"""The tokenizer: read from a folder or trained on the corpus. Its vocabulary tells how a word continues."""

from __future__ import annotations

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

from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_lines, write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
_WORD_MARKS = {"ByteLevel": "Ġ", "Metaspace": "▁"}  # what begins a word, by the step that puts it there
_NO_CHARACTER = "\ufffd"
_SPECIALS = ("pad", "unk", "cls", "sep", "mask")
_LETTERS = 1000  # of the corpus's alphabet, most frequent first; the rest becomes [UNK], as in BERT
# What tells a file set apart when the folder has no tokenizer_config.json.
_FILES = {"vocab.txt": "BertTokenizer", "vocab.json": "RobertaTokenizer"}


@dataclass(frozen=True)
class TokenizerInfo:
    """What shards and training need to know of a tokenizer: plain numbers, no library object.

    Attributes:
        sha256: hash of the vocabulary (token -> id), so that other spellings of the same tokenizer compare equal.
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

    @property
    def special_ids(self) -> tuple[int, ...]:
        return self.pad, self.unk, self.cls, self.sep, self.mask


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer from files in `folder`: vocab.txt, or vocab.json and merges.txt, or tokenizer.json.

    Raises:
        UserError: no such folder, no tokenizer in it, or one without the special tokens BERT and RoBERTa need.
    """
    import transformers

    if not folder.is_dir():
        raise UserError(f"--tokenizer: {folder} is not a folder (or say 'train' to train one on the corpus)")
    name = next((cls for file, cls in _FILES.items() if (folder / file).is_file()), None)
    if (folder / "tokenizer_config.json").is_file() or (name is None and (folder / "tokenizer.json").is_file()):
        name = "AutoTokenizer" if (folder / "tokenizer_config.json").is_file() else "PreTrainedTokenizerFast"
    if name is None:
        raise UserError(f"--tokenizer: {folder} holds no vocab.txt, no vocab.json with merges.txt, no tokenizer.json")
    if name == "BertTokenizer":  # which would add what its vocabulary lacks, silently
        vocabulary = {line for _, line in read_lines(folder / "vocab.txt")}
        for token in (f"[{special.upper()}]" for special in _SPECIALS):
            if token not in vocabulary:
                raise UserError(f"--tokenizer: {folder / 'vocab.txt'} lacks {token}")
    try:
        tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises whatever its file readers raise
        raise UserError(f"--tokenizer: {folder} cannot be read: {str(error).splitlines()[0]}") from None
    missing = [special for special in _SPECIALS if getattr(tokenizer, f"{special}_token_id") is None]
    if missing or not tokenizer.is_fast:
        problem = f"has no {missing[0]} token" if missing else "is not a fast tokenizer (character offsets are needed)"
        raise UserError(f"--tokenizer: {folder} {problem}")
    if max(tokenizer.get_vocab().values()) >= len(tokenizer):
        raise UserError(f"--tokenizer: {folder}: its ids have gaps; number the tokens from 0 on without blank lines")
    word_starts(tokenizer)  # refuses what it does not know
    return tokenizer


def train_tokenizer(texts: Callable[[], Iterator[str]], vocab_size: int, folder: Path) -> None:
    """Trains an uncased WordPiece tokenizer as BERT's and writes it to `folder`; equal texts give equal files.

    Args:
        texts: starts a pass over the corpus; called twice.
        vocab_size: size of the vocabulary at most.
        folder: made if needed.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    specials = {name: f"[{name.upper()}]" for name in _SPECIALS}
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
        # The library numbers the continuing letters in the order of a hash map and breaks ties by number: without this
        # list every training gives another vocabulary. They are "special" in this passing object only.
        special_tokens=[*specials.values(), *(f"##{letter}" for letter in alphabet)],
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    vocabulary = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token in vocabulary))
    BertTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)  # adds [CLS] and [SEP]


def describe(tokenizer: PreTrainedTokenizerBase) -> TokenizerInfo:
    """The numbers of a tokenizer that shards and training need."""
    digest = hashlib.sha256(canonical_json(tokenizer.get_vocab()).encode()).hexdigest()
    ids: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIALS}
    return TokenizerInfo(sha256=digest, vocab_size=len(tokenizer), **ids)


def check_vocabulary(setting: str, folder: Path, vocab_size: int, info: TokenizerInfo) -> None:
    """Refuses a model whose vocabulary is not the dataset's.

    Args:
        setting: what named the model, for the message.
        folder: the model's, maybe with tokenizer files.
        vocab_size: of the model.
        info: of the dataset's tokenizer.

    Raises:
        UserError: too few rows, or another tokenizer in the folder.
    """
    if vocab_size < info.vocab_size:
        raise UserError(
            f"{setting}: {folder} has {vocab_size} tokens, the dataset's tokenizer {info.vocab_size}; "
            "prepare the dataset with that model's tokenizer"
        )
    if any((folder / name).is_file() for name in ("tokenizer.json", *_FILES)):
        own = describe(load_tokenizer(folder))
        if own.sha256 != info.sha256:
            raise UserError(f"{setting}: {folder} has another tokenizer than the dataset; prepare with that one")


def load_core(folder: Path) -> Tokenizer:
    """The core of a tokenizer that was saved to `folder`: all that worker processes need, and loaded in no time."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def take_text_as_it_is(core: Tokenizer) -> None:
    """Nothing is cut or padded, and "[MASK]" in a text is three words, not the mask."""
    core.no_truncation()  # a tokenizer.json may come with either switched on
    core.no_padding()
    core.encode_special_tokens = True


def rules_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that decides how text becomes tokens: vocabulary, merges, normalizer, pre-tokenizer."""
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """bool [V]: whether a token begins a word. WordPiece marks continuations with ##, byte-level BPE beginnings with Ġ,
    SentencePiece with ▁.

    Special tokens and, where beginnings are marked, punctuation and symbols begin a word of their own. A token that
    begins with a part of a character (byte-level BPE cuts between bytes) continues one, unless it cannot be a letter's.

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
    """int64 [n]: the tokens that say that a relation is read from its tail to its head."""
    return np.array(tokenizer.encode(" inverse of", add_special_tokens=False), dtype=np.int64)


def _outside_words(start: bytes) -> bool:
    """Whether UTF-8 text that begins so begins with no letter, mark or digit."""
    first = start.decode(errors="replace")[:1]
    if first == _NO_CHARACTER:
        try:  # a character without its last byte: all that it can be
            first = "".join((start + bytes([last])).decode() for last in range(0x80, 0xC0))
        except UnicodeDecodeError:
            return False
    return all(unicodedata.category(letter)[0] not in "LMN" for letter in first)
