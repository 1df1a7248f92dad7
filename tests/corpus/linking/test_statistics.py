"""Counting and merging: exact, whatever the chunks, and equal to a slow literal count."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.linking.worlds import NAMES, dictionary_of, documents_of, graph_of
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking import (
    AnchorCounts,
    DictionaryOptions,
    LinkDictionary,
    OccurrenceCounts,
    build_dictionary,
    count_anchors,
    count_occurrences,
    set_link_probabilities,
)
from trelm_ds.corpus.linking.build import LABEL_WEIGHT, NAME_LINKS, RARE, SMOOTHING
from trelm_ds.corpus.linking.text import CASES, LOWER
from trelm_ds.errors import UserError

FILES = ["phrases.marisa", *(f"{name}.npy" for name in LinkDictionary.array_names())]


@pytest.mark.parametrize("seed", range(3))
def test_chunking_and_order_do_not_matter(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any chunks in any order give the same bytes; runs too many to open at once and tiny buffers included."""
    documents = documents_of(150, seed)
    whole = tmp_path / "whole"
    dictionary_of(documents, whole)
    monkeypatch.setattr("trelm_ds.corpus.linking.build._OPEN_FILES", 3)
    monkeypatch.setattr("trelm_ds.corpus.linking.build._RUN", 4)
    monkeypatch.setattr("trelm_ds.corpus.linking.build._BUFFER", 10)
    draw = random.Random(seed)
    cuts = [0, *sorted(draw.sample(range(1, 150), 10)), 150]
    chunks = [(first, documents[first:last]) for first, last in itertools.pairwise(cuts)]
    draw.shuffle(chunks)
    parts = []
    for first, chunk in chunks:
        parts.append(tmp_path / f"part-{first}")
        count_anchors(chunk, first).save(parts[-1])
    options = DictionaryOptions(sample=20)
    dictionary = build_dictionary(parts, iter(NAMES), graph_of(tmp_path), tmp_path / "cut", options)
    set_link_probabilities(tmp_path / "cut", [count_occurrences(dictionary, chunk) for _, chunk in chunks])
    for name in FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes(), name


def test_commonness_and_candidates_by_hand(tmp_path: Path) -> None:
    text = "Paris or Paris"
    documents = [Document(text, [Mention(0, 5, 90), Mention(9, 14, 91)]), Document(text, [Mention(0, 5, 90)])]
    names = [(90, ["Paris"]), (91, ["Paris, Texas", "Paris"]), (92, ["Elsewhere"])]
    dictionary = dictionary_of(documents, tmp_path / "d", names)
    number = dictionary.phrases["paris"]
    here = slice(*dictionary.candidate_offsets[number : number + 2])
    assert dictionary.entities[dictionary.candidates[here]].tolist() == [90, 91]
    # The graph knows neither: a label weighs LABEL_WEIGHT, an alias 1, of NAME_LINKS links.
    label = NAME_LINKS * LABEL_WEIGHT / (LABEL_WEIGHT + 1)
    assert dictionary.commonness[here] == pytest.approx(
        [(2 + label) / (3 + NAME_LINKS), (2 - label) / (3 + NAME_LINKS)]
    )


def test_commonness_against_a_literal_count(tmp_path: Path) -> None:
    documents = documents_of(200, 5)
    dictionary = dictionary_of(documents, tmp_path / "d", [(1, ["Unrelated"])])
    links: dict[str, list[int]] = {}
    for text, mentions in documents:
        for start, end, qid in mentions:
            links.setdefault(text[start:end].lower(), []).append(int(qid))
    for phrase, qids in links.items():
        if len(qids) < 2:
            assert phrase not in dictionary.phrases
            continue
        number = dictionary.phrases[phrase]
        here = slice(*dictionary.candidate_offsets[number : number + 2])
        found = dict(
            zip(dictionary.entities[dictionary.candidates[here]].tolist(), dictionary.commonness[here], strict=True)
        )
        assert found == pytest.approx({qid: qids.count(qid) / len(qids) for qid in set(qids)})


def test_link_probability_against_a_literal_count(tmp_path: Path) -> None:
    documents = documents_of(200, 6)
    dictionary = dictionary_of(documents, tmp_path / "d")
    assert dictionary.link_probability is not None
    phrases = sorted(dictionary.phrases.keys(), key=dictionary.phrases.key_id)
    held, linked = np.zeros((len(phrases), CASES)), np.zeros((len(phrases), CASES))
    for number, phrase in enumerate(phrases):
        for text, mentions in documents:
            found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)]
            lower = {text[a:b].islower() for a, b in found}
            sure = {text[a:b].islower() for a, b in found if (a, b) in {m[:2] for m in mentions}}
            for column in (LOWER, 1):
                held[number, column] += (column == LOWER) in lower
                linked[number, column] += (column == LOWER) in sure
    words = np.array([min(phrase.count(" ") + 1, 3) for phrase in phrases])
    names = {name.lower() for _, spellings in NAMES for name in spellings}
    named = np.array([phrase in names for phrase in phrases])
    rare = named & (held.sum(axis=1) <= RARE)
    assert rare.any()
    for number in range(len(phrases)):
        for column in range(CASES):
            same = rare & (words == words[number])
            prior = linked[same, column].sum() / max(held[same, column].sum(), 1)
            expected = (linked[number, column] + SMOOTHING * prior) / (held[number, column] + SMOOTHING)
            assert dictionary.link_probability[number, column] == pytest.approx(expected)


def test_partial_results_round_trip(tmp_path: Path) -> None:
    counts = count_anchors(documents_of(20, 1), 7)
    counts.save(tmp_path / "part")
    loaded = AnchorCounts.load(tmp_path / "part")
    assert loaded.anchors == counts.anchors
    np.testing.assert_array_equal(loaded.links, counts.links)
    assert counts.links[:, 0].min() >= 7
    dictionary = dictionary_of(documents_of(20, 1), tmp_path / "d")
    occurrences = count_occurrences(dictionary, documents_of(20, 2))
    occurrences.save(tmp_path / "occurrences.npy")
    np.testing.assert_array_equal(OccurrenceCounts.load(tmp_path / "occurrences.npy").rows, occurrences.rows)


@pytest.mark.parametrize("damage", [b"broken", b"phrase\t1\n", b"phrase\tx\t1\n"])
def test_damaged_anchors_are_one_line(tmp_path: Path, damage: bytes) -> None:
    count_anchors(documents_of(5, 1)).save(tmp_path / "part")
    (tmp_path / "part" / "anchors.tsv").write_bytes(damage)
    with pytest.raises(UserError, match=r"anchors\.tsv:1: damaged") as error:
        build_dictionary([tmp_path / "part"], iter(NAMES), graph_of(tmp_path), tmp_path / "d")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d").exists()


def test_occurrences_of_another_dictionary_are_refused(tmp_path: Path) -> None:
    dictionary_of(documents_of(20, 1), tmp_path / "d")
    foreign = OccurrenceCounts(np.array([[10**6, 1, 0, 0, 0, 0, 0]], dtype=np.int32))
    with pytest.raises(UserError, match="another dictionary"):
        set_link_probabilities(tmp_path / "d", [foreign])


def test_rules_for_what_enters(tmp_path: Path) -> None:
    once = Document("Seldom and Rare Thing", [Mention(0, 6, 5), Mention(11, 21, 6)])
    names = [(6, ["Rare Thing"]), (7, ["no", "The Red Sea", "Red Sea", "1984", "The Who", "C"])]
    dictionary = dictionary_of([once], tmp_path / "d", names)
    assert sorted(dictionary.phrases.keys()) == ["rare thing", "red sea", "the who"]


def test_documents_without_anything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an anchor nor a name"):
        dictionary_of([Document("", [])], tmp_path / "d", [])
    dictionary = dictionary_of([Document("", [])], tmp_path / "e")
    assert dictionary.documents == 0
    assert count_occurrences(dictionary, []).rows.shape == (0, 1 + 2 * CASES)
