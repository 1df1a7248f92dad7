"""Conversion of documents to token sequences and of mentions to token spans. Text is split, but never dropped."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import sentencex

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.tokenizer import TokenizerInfo, encode_literally
from trelm_ds.shards import Sequence

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Unit = Literal["document", "sentence"]
_BATCH = 256


def sequences_of(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    info: TokenizerInfo,
    max_length: int,
    counts: Counter[str],
    unit: Unit = "document",
) -> Iterator[Sequence]:
    """Yield token sequences `[CLS] tokens [SEP]` of at most `max_length` tokens with their mentions.

    Args:
        documents: documents whose mentions have QID numbers as targets.
        tokenizer: the library's core object (`backend_tokenizer` in transformers).
        info: its special tokens.
        max_length: in tokens, special tokens included.
        counts: receives the number of dropped mentions, by reason.
        unit: "document": one sequence per document, split between sentences if it is too long; "sentence": one sequence
            per sentence. A sentence that is too long is split between words.
    """
    budget = max_length - 2
    encode_literally(tokenizer)
    for batch in itertools.batched(documents, _BATCH) if hasattr(itertools, "batched") else _batched(documents):
        encodings = tokenizer.encode_batch([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids  # kept, because the property builds a new list on every access
            if not ids:
                counts["documents without a token"] += 1
                continue
            offsets = np.array(encoding.offsets, dtype=np.int64)
            spans = _token_spans(document.mentions, offsets, counts)
            words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
            sentences = _sentence_starts(document.text, offsets)
            counts["sentences"] += len(sentences)
            for first, last in _pieces(sentences, words, budget, unit):
                tokens = np.array([info.cls, *ids[first:last], info.sep], dtype=np.uint32)
                inside = (spans[:, 0] >= first) & (spans[:, 1] <= last)
                crossing = (spans[:, 0] < last) & (spans[:, 1] > first) & ~inside
                counts["mentions dropped: cut between two sequences"] += int((crossing & (spans[:, 0] >= first)).sum())
                yield Sequence(tokens, spans[inside] + np.array([1 - first, 1 - first, 0]))


def _batched(documents: Iterable[Document]) -> Iterator[tuple[Document, ...]]:
    iterator = iter(documents)
    while batch := tuple(itertools.islice(iterator, _BATCH)):
        yield batch


def _token_spans(mentions: list[Mention], offsets: np.ndarray, counts: Counter[str]) -> np.ndarray:
    """Map mentions to tokens; those that cut a token, have none or overlap an earlier one are dropped and counted.

    Args:
        mentions: character spans in any order.
        offsets: int [T, 2], character span of each token.

    Returns:
        int64 [M, 3] (first token, last token + 1, QID number), by position.
    """
    kept: list[tuple[int, int, int]] = []
    taken = 0
    for mention in sorted(mentions, key=lambda m: (m.start, -m.end)):
        first = int(np.searchsorted(offsets[:, 1], mention.start, side="right"))
        last = int(np.searchsorted(offsets[:, 0], mention.end, side="left"))
        if first >= last:
            counts["mentions dropped: no token"] += 1
        elif offsets[first, 0] < mention.start or offsets[last - 1, 1] > mention.end:
            counts["mentions dropped: inside a token"] += 1
        elif first < taken:
            counts["mentions dropped: overlap"] += 1
        else:
            assert isinstance(mention.target, int)
            kept.append((first, last, mention.target))
            taken = last
    return np.array(kept, dtype=np.int64).reshape(-1, 3)


def _pieces(sentences: np.ndarray, words: np.ndarray, budget: int, unit: Unit) -> Iterator[tuple[int, int]]:
    """Yield token ranges [first, last) of at most `budget` tokens, split between sentences, else between words.

    Args:
        sentences: int [S], tokens at which a sentence begins.
        words: int [T], index of each token's word.
        budget: maximum number of tokens per range.
        unit: see `sequences_of`.
    """
    first, total = 0, len(words)
    ends = np.append(sentences, total)
    while first < total:
        limit = min(first + budget, total)
        low, high = np.searchsorted(ends, [first, limit], side="right")
        if low < high:
            last = int(ends[low] if unit == "sentence" else ends[high - 1])
        else:
            last = _word_end(words, first, limit)
        yield first, last
        first = last


def _sentence_starts(text: str, offsets: np.ndarray) -> np.ndarray:
    """Find the tokens at which a sentence begins, ascending; a line break always ends a sentence."""
    starts: list[int] = []
    position = 0
    for line in text.split("\n"):
        inside = position
        # The library fails on multi-byte white space; replacing it by a blank preserves all offsets.
        for sentence in sentencex.segment("en", re.sub(r"\s", " ", line)):
            starts.append(inside)
            inside += len(sentence)
        position += len(line) + 1
    tokens = np.unique(np.searchsorted(offsets[:, 0], np.array(starts)))
    return tokens[tokens < len(offsets)]


def _word_end(words: np.ndarray, first: int, limit: int) -> int:
    """Find the last index in (first, limit] at which a word begins; `limit` if a single word spans the range."""
    begins = np.flatnonzero(words[first + 1 : limit + 1] != words[first:limit])
    return first + 1 + int(begins[-1]) if len(begins) else limit
