"""Sequences: no text is lost, no sequence too long, mention spans are the mention's tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trelm_ds.corpus import describe, load_tokenizer
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.sequences import sequences_of

TEXT = "Person01 lives in City01 and likes it. Person02 lives in City02 near the river, they say."


@pytest.fixture(scope="module")
def tokenizer(tiny_dataset: Path):
    return load_tokenizer(tiny_dataset / "tokenizer")


@pytest.mark.parametrize("max_length", [8, 9, 13, 21, 34, 512])
def test_cutting_loses_no_token(tokenizer, max_length: int) -> None:
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = list(
        sequences_of([Document(TEXT, [])], tokenizer.backend_tokenizer, describe(tokenizer), max_length, Counter())
    )
    assert all(len(piece.tokens) <= max_length for piece in pieces)
    assert all(
        (piece.tokens[0], piece.tokens[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for piece in pieces
    )
    assert [token for piece in pieces for token in piece.tokens[1:-1]] == whole


@pytest.mark.parametrize("max_length", [8, 13, 512])
def test_sentences_one_by_one(tokenizer, max_length: int) -> None:
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = list(
        sequences_of(
            [Document(TEXT, [])], tokenizer.backend_tokenizer, describe(tokenizer), max_length, Counter(), "sentence"
        )
    )
    assert [token for piece in pieces for token in piece.tokens[1:-1]] == whole
    if max_length == 512:
        assert [tokenizer.decode(piece.tokens[1:3]) for piece in pieces] == ["person01 lives", "person02 lives"]


def test_a_long_document_is_cut_between_sentences(tokenizer) -> None:
    first = len(tokenizer("Person01 lives in City01 and likes it.", add_special_tokens=False)["input_ids"])
    pieces = list(
        sequences_of([Document(TEXT, [])], tokenizer.backend_tokenizer, describe(tokenizer), first + 8, Counter())
    )
    assert len(pieces[0].tokens) == first + 2


def test_mention_spans_are_the_mentions_tokens(tokenizer) -> None:
    mentions = [
        Mention(TEXT.index(name), TEXT.index(name) + 8, number) for number, name in enumerate(["Person01", "Person02"])
    ]
    found = {}
    for piece in sequences_of(
        [Document(TEXT, mentions)], tokenizer.backend_tokenizer, describe(tokenizer), 30, Counter()
    ):
        for start, end, qid in piece.mentions:
            found[int(qid)] = tokenizer.decode(piece.tokens[start:end])
    assert found == {0: "person01", 1: "person02"}


def test_mentions_that_do_not_survive_are_counted_by_reason(tokenizer) -> None:
    mentions = [Mention(0, 8, 1), Mention(0, 14, 2), Mention(8, 9, 3), Mention(19, 23, 4)]
    counts: Counter[str] = Counter()
    (piece,) = sequences_of(
        [Document("Person01 lives in City01.", mentions)], tokenizer.backend_tokenizer, describe(tokenizer), 64, counts
    )
    assert piece.mentions[:, 2].tolist() == [2]  # of two that begin together the longer stays
    assert counts["mentions dropped: overlap"] == 1
    assert counts["mentions dropped: no token"] == 1
    assert counts["mentions dropped: inside a token"] == 1


def test_a_mention_across_the_cut_is_counted_once(tokenizer) -> None:
    text = "lives " * 40
    counts: Counter[str] = Counter()
    pieces = list(
        sequences_of(
            [Document(text, [Mention(0, 6 * 30 - 1, 7)])], tokenizer.backend_tokenizer, describe(tokenizer), 12, counts
        )
    )
    assert sum(len(piece.mentions) for piece in pieces) == 0
    assert counts["mentions dropped: cut between two sequences"] == 1
    assert sum(len(piece.tokens) - 2 for piece in pieces) == 40


def test_special_tokens_in_a_text_are_words(tokenizer) -> None:
    (piece,) = sequences_of(
        [Document("Person01 [MASK] lives [SEP] in [PAD] City01.", [])],
        tokenizer.backend_tokenizer,
        describe(tokenizer),
        64,
        Counter(),
    )
    assert not set(piece.tokens[1:-1].tolist()) & {
        tokenizer.mask_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    }


def test_a_tokenizer_that_pads_does_not_pad_here(tokenizer) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (piece,) = sequences_of(
        [Document("Person01 lives.", [])], tokenizer.backend_tokenizer, describe(tokenizer), 64, Counter()
    )
    assert tokenizer.pad_token_id not in piece.tokens


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\x85", "\u2028"])
def test_white_space_of_many_bytes(tokenizer, blank: str) -> None:
    text = f"Plan B{blank}. Person01 lives in{blank}City01. He likes it."
    (piece,) = sequences_of([Document(text, [])], tokenizer.backend_tokenizer, describe(tokenizer), 64, Counter())
    assert len(piece.tokens) > 10


def test_a_document_without_a_token_yields_nothing(tokenizer) -> None:
    counts: Counter[str] = Counter()
    assert (
        list(sequences_of([Document(" \n ", [])], tokenizer.backend_tokenizer, describe(tokenizer), 12, counts)) == []
    )
    assert counts["documents without a token"] == 1


def test_byte_level_vocabulary(shared_data: Path) -> None:
    roberta = load_tokenizer(shared_data / "tokenizers" / "roberta-base")
    text = "Alan Turing met Ada Lovelace."
    document = Document(text, [Mention(5, 11, 1), Mention(16, 28, 2)])
    (piece,) = sequences_of([document], roberta.backend_tokenizer, describe(roberta), 32, Counter())
    assert [roberta.decode(piece.tokens[start:end]).strip() for start, end, _ in piece.mentions] == [
        "Turing",
        "Ada Lovelace",
    ]
    assert piece.tokens.dtype == np.uint32
