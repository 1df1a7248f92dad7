"""Hidden anchors: what is counted as right, and that nothing hidden is shown to the linker."""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.corpus.linking.worlds import dictionary_of, documents_of
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linked import parse_linked
from trelm_ds.corpus.linking import (
    LinkDictionary,
    LinkedMention,
    Linker,
    build_dictionary,
    count_anchors,
    count_occurrences,
    set_link_probabilities,
)
from trelm_ds.corpus.linking.evaluation import (
    LinkingEvaluation,
    LinkingScore,
    evaluate_linker,
    fold_of,
    most_common_sense,
)
from trelm_ds.knowledge import KnowledgeGraph, find_wikidata5m, read_names, read_triples


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> LinkDictionary:
    return dictionary_of(documents_of(300, 9), tmp_path_factory.mktemp("noise") / "d")


def mention(start: int, end: int, qid: int, rho: float) -> LinkedMention:
    return LinkedMention(start, end, qid, rho, rho, rho, 1.0)


def test_counts_by_hand(noise: LinkDictionary) -> None:
    text = "Venus, Mars, Queen and the Unknown"
    anchors = [Mention(0, 5, 20), Mention(7, 11, 21), Mention(13, 18, 40), Mention(27, 34, 77)]
    found = [
        mention(0, 5, 20, 0.9),  # right
        mention(7, 11, 99, 0.8),  # its span only
        mention(13, 22, 40, 0.7),  # its entity only
        mention(23, 26, 5, 0.6),  # cannot be judged
    ]

    def score(document: Document) -> list[LinkedMention]:
        assert document == Document(text, [])
        return found

    into = LinkingEvaluation([LinkingScore(0.0), LinkingScore(0.75)])
    low, high = evaluate_linker(score, noise, [Document(text, anchors)], into).scores
    counts = (low.predicted, low.judged, low.right, low.right_span, low.right_entity, low.hidden, low.known)
    assert counts == (4, 3, 1, 2, 2, 4, 3)
    assert (low.precision, low.recall, low.known_recall, low.f1) == (1 / 3, 1 / 4, 1 / 3, 2 / 7)
    assert (high.predicted, high.judged, high.right) == (2, 2, 1)
    evaluate_linker(score, noise, [Document(text, anchors)], into)
    assert (into.documents, into.mentions, low.hidden) == (2, 8, 8)


def test_part_of_the_anchors_stays_visible(noise: LinkDictionary) -> None:
    documents = documents_of(200, 11)
    visible = list[Mention]()

    def score(document: Document) -> list[LinkedMention]:
        visible.extend(document.mentions)
        return []

    into = evaluate_linker(score, noise, documents, LinkingEvaluation([LinkingScore(0.0)]), hidden_share=0.5)
    anchors = sum(len(document.mentions) for document in documents)
    assert into.scores[0].hidden + len(visible) == anchors
    assert 0.4 < len(visible) / anchors < 0.6


def test_folds_share_the_documents_out() -> None:
    sizes = Counter(fold_of(f"text {number}") for number in range(5000))
    assert sorted(sizes) == list(range(10))
    assert min(sizes.values()) > 400


def test_the_baseline_takes_the_longest_match(noise: LinkDictionary) -> None:
    text = "Freddie Mercury and Red Planet"
    found = most_common_sense(noise)(Document(text, [Mention(20, 23, 1)]))
    assert [(text[one.start : one.end], one.qid) for one in found] == [("Freddie Mercury", 12)]


@pytest.mark.slow
def test_real_sentences(shared_data: Path, tmp_path: Path) -> None:
    """Linked Wikipedia sentences against Wikidata: anchors come back, at exact places, better than by chance."""
    with gzip.open(shared_data / "corpus" / "trex_linked.jsonl.gz") as stream:
        documents = [parse_linked(line) for line in islice(stream, 6000)]
    files = find_wikidata5m(shared_data / "wikidata5m")
    seen = [document for document in documents if fold_of(document.text) != 0]
    unseen = [document for document in documents if fold_of(document.text) == 0]
    count_anchors(seen).save(tmp_path / "part")
    graph = KnowledgeGraph.from_triples(read_triples(files.triples)[0])
    dictionary = build_dictionary([tmp_path / "part"], read_names(files.entity, "Q"), graph, tmp_path / "d")
    dictionary = set_link_probabilities(tmp_path / "d", [count_occurrences(dictionary, seen)])
    into = LinkingEvaluation([LinkingScore(0.0)])
    score = evaluate_linker(Linker(dictionary), dictionary, unseen, into).scores[0]
    assert score.hidden > 500
    assert score.precision > 0.9
    assert score.recall > 0.7
    for document in unseen:
        spans = sorted([*document.mentions, *Linker(dictionary).link(document)])
        assert all(0 <= start < end <= len(document.text) for start, end, _ in spans)
