"""Names as token ids: rows in the graph's order, whatever the order, number and soundness of the lines."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.logged import warns
from trelm_ds.errors import UserError
from trelm_ds.knowledge import KnowledgeGraph, Names, encode_names, find_wikidata5m, names
from trelm_ds.ragged import gather

UNK = 1


def letters(texts: list[str]) -> list[list[int]]:
    """A tokenizer of letters: each its code, the blank in front too; ? cannot be written and a bell has no token."""
    return [[UNK if letter == "?" else ord(letter) for letter in text if letter != "\a"] for text in texts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wikidata5m_all_triplet.txt").write_text("Q5\tP2\tQ7\nQ5\tP1\tQ9\nQ9\tP1\tQ11\n")
    (tmp_path / "wikidata5m_entity.txt").write_text(
        "Q9\tnine\tnovem\nQ4\tfour\nQ5\nQ7\t \tseven \tsept?\tsieben\nQ9\tagain\nQ5\tfive\nQ11\t?\t\aeleven?\n"
    )
    (tmp_path / "wikidata5m_relation.txt").write_text("P2\tin\twithin\nP3\tout\n")
    return tmp_path


def read(folder: Path, budget: float = 0.0, encode: Callable[[list[str]], list[list[int]]] = letters) -> Names:
    graph = KnowledgeGraph.from_triples(np.array([[5, 2, 7], [5, 1, 9], [9, 1, 11]], dtype=np.int32))
    found = encode_names(find_wikidata5m(folder), graph, encode, [UNK], budget, Counter())
    found.save(folder / "names")
    return Names.load(folder / "names")


def words(found: Names, kind: str) -> list[str]:
    offsets, tokens = getattr(found, f"{kind}_offsets"), getattr(found, f"{kind}_tokens")
    assert (offsets.dtype, tokens.dtype) == (np.int64, np.int32)
    return ["".join(map(chr, tokens[first:last])) for first, last in itertools.pairwise(offsets)]


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (2, 3), (1000, 1000)])
def test_rows_follow_the_graph(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int, rows: int) -> None:
    monkeypatch.setattr(names, "_BATCH", batch)
    monkeypatch.setattr(names, "_ROWS", rows)
    found = read(folder)  # Q5, Q7, Q9, Q11
    assert words(found, "entity") == [" five", " seven", " nine", ""]  # the first line counts that has a name
    assert words(found, "alias") == [" five", " seven sieben", " nine novem", ""]
    assert words(found, "text") == ["", "", "", ""]
    assert words(found, "relation") == ["", " in"]


def test_what_cannot_be_written_is_counted(folder: Path) -> None:
    counts: Counter[str] = Counter()
    graph = KnowledgeGraph.from_triples(np.array([[5, 2, 7], [9, 1, 11]], dtype=np.int32))
    encode_names(find_wikidata5m(folder), graph, letters, [UNK], 0.0, counts)
    assert {name: value for name, value in counts.items() if value} == {
        "graph: entities whose names cannot be written": 1
    }


def test_eight_names_at_most(folder: Path) -> None:
    (folder / "wikidata5m_entity.txt").write_text("Q5\t" + "\t".join("abcdefghij") + "\n")
    assert words(read(folder), "alias")[0] == " a b c d e f g h"


def test_descriptions_are_cut(folder: Path) -> None:
    (folder / "wikidata5m_text.txt").write_text(f"Q9\ta number\nQ7\t{'long  ' * 100}\nQ8\tunknown\nQ9\tagain\n")
    found = read(folder)
    assert words(found, "text") == ["", (" long" * 64)[:64], " a number", ""]


def test_malformed_descriptions_have_a_budget(folder: Path) -> None:
    (folder / "wikidata5m_text.txt").write_bytes(b"Q9\ta number\n" * 9 + b"Q7\tsev\xff\n")
    with pytest.raises(UserError, match=r"wikidata5m_text.txt:10: not valid UTF-8.*1 of 10 records malformed"):
        read(folder)
    with warns(r"left out: .*wikidata5m_text.txt:10"):
        assert words(read(folder, 0.1), "text") == ["", "", " a number", ""]


def test_a_missing_array(folder: Path) -> None:
    read(folder)
    (folder / "names" / "alias_tokens.npy").unlink()
    with pytest.raises(UserError, match=r"alias_tokens.npy: missing; run `trelm prepare` again"):
        Names.load(folder / "names")


def test_rows_are_gathered_in_any_order(folder: Path) -> None:
    found = read(folder)
    tokens, length = gather(found.entity_offsets, found.entity_tokens, np.array([2, 3, 0, 2]))
    assert "".join(map(chr, tokens)) == " nine five nine"
    np.testing.assert_array_equal(length, np.diff(found.entity_offsets)[[2, 3, 0, 2]])
    tokens, length = gather(found.entity_offsets, found.entity_tokens, np.zeros(0, dtype=np.int64))
    assert (len(tokens), len(length)) == (0, 0)
