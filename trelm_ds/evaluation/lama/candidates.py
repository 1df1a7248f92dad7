"""The tokens that an answer is chosen from, and how words become them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.files import read_lines


class Candidates:
    """The candidate set: the words of a file, those that several tokenizers share, or the model's whole vocabulary.

    A word is a candidate if it is one token of the model and of every tokenizer of `others`. Thus two models, each
    evaluated with the other's tokenizer among its `others`, choose from the same words and are asked the same facts.
    Byte-level tokenizers have a word twice, with a space in front and without: it must be one token in the form
    that the place in the prompt asks for, in every tokenizer. Words without a letter or digit are not shared.

    Args:
        tokenizer: the model's.
        path: file with one word a line, such as LAMA's `common_vocab_cased.txt`; None: take them from the tokenizers.
        others: (folder, tokenizer) of each tokenizer to share the words with.

    Attributes:
        description: source and number of candidates behind a space, plain JSON values.

    Raises:
        UserError: the file cannot be read, or no word is a single token.
    """

    def __init__(self, tokenizer: Any, path: Path | None, others: Sequence[tuple[Path, Any]] = ()) -> None:
        self.tokenizer, self._others = tokenizer, [other for _, other in others]
        self._tokens: dict[bool, Tensor] = {}
        self._words: list[str] | None = None  # None: the model's whole vocabulary
        if path is not None:
            self._words, source = _read_words(path), "vocabulary file"
        elif others:
            self._words, source = _shared_words([tokenizer, *self._others]), "words of several tokenizers"
        else:
            source = "model vocabulary"
        folders = [str(folder) for folder, _ in others]
        self.description: dict[str, Any] = {"source": source, "path": str(path) if path else None}
        self.description |= {"common_with": folders, "n_tokens": self.tokens(True).numel()}
        if not self.description["n_tokens"]:
            where, n_words = path or " and ".join(folders), len(self._words or ())
            raise UserError(f"{where}: none of its {n_words} words is one token of the model; give another vocabulary")

    def tokens(self, space: bool) -> Tensor:
        """List the candidates behind a space, or at the beginning of a text: token ids, int64 [C], ascending."""
        if space not in self._tokens:
            if self._words is None:
                self._tokens[space] = _whole_words(self.tokenizer, space)
            else:
                ids, common = self.encode(self._words, space), self._is_common(self._words, space)
                single = {one[0] for one, shared in zip(ids, common, strict=True) if len(one) == 1 and shared}
                self._tokens[space] = torch.tensor(sorted(single - set(self.tokenizer.all_special_ids)))
        return self._tokens[space]

    def encode(self, words: list[str], space: bool) -> list[list[int]]:
        """Give the model's tokens of each word, as it stands behind a space or at the beginning of a text."""
        return encode_words(self.tokenizer, words, space)

    def askable(self, words: list[str], space: bool) -> list[bool]:
        """Whether each object is a candidate."""
        if not words:
            return []
        allowed = set(self.tokens(space).tolist())
        ids, common = self.encode(words, space), self._is_common(words, space)
        return [len(one) == 1 and one[0] in allowed and shared for one, shared in zip(ids, common, strict=True)]

    def _is_common(self, words: list[str], space: bool) -> list[bool]:
        """Whether each word is one token, not a special one, of every other tokenizer."""
        common = [True] * len(words)
        for tokenizer in self._others:
            special = set(tokenizer.all_special_ids)
            for row, ids in enumerate(encode_words(tokenizer, words, space)):
                common[row] &= len(ids) == 1 and ids[0] not in special
        return common


def encode_words(tokenizer: Any, words: list[str], space: bool) -> list[list[int]]:
    """Encode each word as it appears behind a space, or at the beginning of a text."""
    texts = [f" {word.strip()}" if space else word.strip() for word in words]
    ids_only = {"return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(texts, add_special_tokens=False, **ids_only)["input_ids"] if texts else []


def common_vocabulary(folder: Path, tokenizer: Any) -> Path | None:
    """Find LAMA's common_vocab_cased.txt or common_vocab_lowercased.txt in FOLDER, whichever fits the tokenizer.

    Raises:
        UserError: several fit.
    """
    found = sorted(folder.glob("common_vocab*.txt"))
    if len(found) <= 1:
        return found[0] if found else None
    lower = tokenizer("A")["input_ids"] == tokenizer("a")["input_ids"]
    fitting = [path for path in found if ("lower" in path.stem or "uncased" in path.stem) == lower]
    if len(fitting) != 1:
        raise UserError(f"{folder}: holds several common_vocab*.txt; name the one to use by --vocab")
    return fitting[0]


def _read_words(path: Path) -> list[str]:
    words = [word for _, line in read_lines(path) if (word := line.strip())]
    if not words:
        raise UserError(f"{path}: is empty; give one word a line")
    return words


def _shared_words(tokenizers: list[Any]) -> list[str]:
    """List the whole words of all the tokenizers' vocabularies, as text."""
    words: set[str] = set()
    for tokenizer in tokenizers:
        for space in (True, False):
            tokens = tokenizer.convert_ids_to_tokens(_whole_words(tokenizer, space).tolist())
            words.update(tokenizer.convert_tokens_to_string([token]).strip() for token in tokens)
    # U+FFFD stands for a part of a character, which byte-level tokenizers have as tokens.
    return sorted(word for word in words if any(map(str.isalnum, word)) and "\ufffd" not in word)


def _whole_words(tokenizer: Any, space: bool) -> Tensor:
    """List the tokens, int64 [C], that are neither special nor the continuation of a word."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    continuation = getattr(model, "continuing_subword_prefix", None) if type(model).__name__ == "WordPiece" else None
    inside, outside = ((tokenizer.tokenize(text) or [""])[0][:1] for text in (" a", "a"))
    marker = inside if inside in ("Ġ", "▁") else ""  # a leading space in byte-level BPE and SentencePiece
    space = space or outside == marker  # some put a space in front of every text

    def whole(token: str) -> bool:
        if continuation:
            return not token.startswith(continuation)
        return not marker or token.startswith(marker) == space

    special = set(tokenizer.all_special_ids)
    ids = sorted(index for token, index in tokenizer.get_vocab().items() if index not in special and whole(token))
    return torch.tensor(ids, dtype=torch.long)
