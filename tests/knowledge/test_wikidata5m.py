"""Wikidata5M's files: both ways of reading a block agree, few malformed lines are left out, many are refused."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.logged import warns
from trelm_ds.errors import UserError
from trelm_ds.knowledge import GraphFile, find_wikidata5m, read_names, read_triples, wikidata5m


def lines(count: int, seed: int) -> tuple[list[str], set[tuple[int, int, int]]]:
    draw = random.Random(seed)
    triples = [(draw.randrange(1, 999_999_999), draw.randrange(1, 99), draw.randrange(1, 50)) for _ in range(count)]
    return [f"Q{head}\tP{relation}\tQ{tail}" for head, relation, tail in triples], set(triples)


@pytest.mark.parametrize("piece", [7, 64, 1 << 20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_triple_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, ending: str) -> None:
    monkeypatch.setattr(wikidata5m, "_PIECE", piece)
    good, expected = lines(300, 1)
    (tmp_path / "t").write_text(ending.join([*good, *good[:9]]), newline="")
    found, repeated, malformed = read_triples([GraphFile(tmp_path / "t")])
    assert found.dtype == np.int32
    assert [tuple(row) for row in found.tolist()] == sorted(expected)
    assert (repeated, malformed) == (9, 0)


@pytest.mark.parametrize("piece", [3, 8, 1 << 20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_files_of_other_editors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, ending: str, end: str
) -> None:
    """A byte-order mark, Windows' line ends, empty lines at the end: no reader finds anything malformed."""
    monkeypatch.setattr(wikidata5m, "_PIECE", piece)
    good, expected = lines(30, 3)
    (tmp_path / "t").write_text(ending.join(good) + end.replace("\n", ending), encoding="utf-8-sig", newline="")
    found, _, malformed = read_triples([GraphFile(tmp_path / "t")])
    assert ({tuple(row) for row in found.tolist()}, malformed) == (expected, 0)
    names = ["Q1\tone", "Q2\ttwo\tsecond"]
    (tmp_path / "n").write_text(ending.join(names) + end.replace("\n", ending), encoding="utf-8-sig", newline="")
    assert list(read_names(GraphFile(tmp_path / "n"), "Q")) == [(1, ["one"]), (2, ["two", "second"])]


def test_an_empty_line_between_others_is_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikidata5m, "_PIECE", 8)
    (tmp_path / "n").write_text("\nQ1\tone\n\n\nQ2\ttwo\n\n")
    with pytest.raises(UserError, match=r"n:1: expected an id such as Q42, got '' \(3 of 5 records malformed"):
        list(read_names(GraphFile(tmp_path / "n"), "Q"))


def test_malformed_lines_are_counted_shown_and_limited(tmp_path: Path) -> None:
    good, expected = lines(1000, 2)
    bad = ["Q1\tP1", "", "Q1\tP1\tQ2\tQ3", "Q\tP1\tQ2", "Q1 P1 Q2", "P1\tP1\tQ1", "Q1\tP1\tQ1234567890", "Q１\tP1\tQ2"]
    mixed = good.copy()
    for place, line in enumerate(bad):
        mixed.insert(100 * place + 5, line)
    (tmp_path / "t").write_text("\n".join(mixed) + "\n")
    file = GraphFile(tmp_path / "t")
    with warns("left out: ") as shown:
        found, _, malformed = read_triples([file], max_malformed=0.01)
    assert [tuple(row) for row in found.tolist()] == sorted(expected)
    assert malformed == len(bad)
    assert [message.split(":")[2] for message in shown] == [str(100 * n + 6) for n in range(len(bad))]
    with pytest.raises(UserError, match=r"t:6: expected head<TAB>.*8 of 1,008 records malformed"):
        read_triples([file], max_malformed=0.001)


def test_malformed_names(tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(b"\xef\xbb\xbfQ1\tone\n" + b"Q2\ttwo\tsecond\n" * 98 + b"Q3\t\xff\n")
    with pytest.raises(UserError, match=r"n:100: not valid UTF-8"):
        list(read_names(GraphFile(tmp_path / "n"), "Q"))
    with warns(r"left out: .*n:100"):
        found = list(read_names(GraphFile(tmp_path / "n"), "Q", 0.01))
    assert found == [(1, ["one"])] + [(2, ["two", "second"])] * 98


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikidata5m, "_PIECE", 1 << 10)
    monkeypatch.setattr(wikidata5m, "_LONGEST_LINE", 1 << 12)
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"Q1" * (1 << 14)))
    with pytest.raises(UserError, match="a line of more than"):
        read_triples([GraphFile(tmp_path / "t.gz")])


def test_published_archives_are_found(tmp_path: Path) -> None:
    good, expected = lines(30, 3)
    contents = {
        "wikidata5m_alias.tar.gz": {"wikidata5m_entity.txt": "Q1\tone\n", "wikidata5m_relation.txt": "P1\tof\n"},
        "wikidata5m_transductive.tar.gz": {
            f"x/wikidata5m_transductive_{split}.txt": "\n".join(good[10 * n : 10 * n + 10])
            for n, split in enumerate(("train", "valid", "test"))
        },
    }
    for name, members in contents.items():
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for member, text in members.items():
                about = tarfile.TarInfo(member)
                about.size = len(text)
                archive.addfile(about, io.BytesIO(text.encode()))
    found = find_wikidata5m(tmp_path)
    assert [path.name for path in found.paths] == sorted(contents)
    triples, _, malformed = read_triples(found.triples)
    assert malformed == 0
    assert {tuple(row) for row in triples.tolist()} == expected
    assert list(read_names(found.entity, "Q")) == [(1, ["one"])]
    (tmp_path / "wikidata5m_all_triplet.txt").write_text("Q1\tP1\tQ2\n")
    assert [file.path.name for file in find_wikidata5m(tmp_path).triples] == ["wikidata5m_all_triplet.txt"]
