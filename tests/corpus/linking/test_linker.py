"""The linker's decisions on constructed worlds, and its promises on any text."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.linking.worlds import dictionary_of, documents_of, graph_of
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking import LinkDictionary, Linker, LinkingOptions, build_dictionary, count_anchors
from trelm_ds.corpus.linking.relatedness import Relatedness
from trelm_ds.errors import UserError

PLANET, METAL = 10, 11
VENUS, MARS, LEAD, ARSENIC = 20, 21, 30, 31


def linked(text: str, *names: tuple[str, int]) -> Document:
    return Document(text, [Mention(text.index(name), text.index(name) + len(name), qid) for name, qid in names])


def planets_and_metals() -> list[Document]:
    """Mercury is the planet four times of seven."""
    planets = linked("Mercury, Venus and Mars", ("Mercury", PLANET), ("Venus", VENUS), ("Mars", MARS))
    metals = linked("Mercury, lead and arsenic", ("Mercury", METAL), ("lead", LEAD), ("arsenic", ARSENIC))
    others = [linked(f"The Queen met number {n}", ("Queen", 40)) for n in range(8)]
    return [planets] * 4 + [metals] * 3 + others


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> LinkDictionary:
    return dictionary_of(planets_and_metals(), tmp_path_factory.mktemp("space") / "d")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> LinkDictionary:
    return dictionary_of(documents_of(300, 9), tmp_path_factory.mktemp("noise") / "d")


def found(linker: Linker, document: Document) -> dict[str, int | str]:
    return {document.text[start:end]: target for start, end, target in linker.link(document)}


def test_votes_choose_the_coherent_sense(space: LinkDictionary) -> None:
    linker = Linker(space, LinkingOptions(minimum_rho=0.2))
    assert found(linker, Document("Mercury with lead and arsenic", []))["Mercury"] == METAL
    assert found(linker, Document("Mercury with Venus and Mars", []))["Mercury"] == PLANET
    assert found(linker, Document("Mercury alone", []))["Mercury"] == PLANET  # the most common sense
    common = Linker(space, LinkingOptions(minimum_rho=0.2, epsilon=1.0))
    assert found(common, Document("Mercury with lead and arsenic", []))["Mercury"] == PLANET


def test_the_documents_own_anchors_vote(space: LinkDictionary) -> None:
    linker = Linker(space, LinkingOptions(minimum_rho=0.2))
    document = linked("Mercury and plumbum", ("plumbum", LEAD))
    assert found(linker, document) == {"Mercury": METAL}


def test_an_edge_of_the_graph_votes(tmp_path: Path) -> None:
    """Without any document in common, a triple from one entity to the other decides."""
    documents = [linked("Mercury", ("Mercury", PLANET))] * 3 + [linked("Mercury", ("Mercury", METAL))] * 2
    dictionary = dictionary_of([*documents, *[linked("lead", ("lead", LEAD))] * 3], tmp_path / "d")
    text = Document("Mercury and lead", [])
    assert found(Linker(dictionary, LinkingOptions(minimum_rho=0.2)), text)["Mercury"] == PLANET
    assert found(Linker(dictionary, LinkingOptions(minimum_rho=0.2, graph_weight=0.5)), text)["Mercury"] == METAL


def test_a_higher_threshold_only_removes(noise: LinkDictionary) -> None:
    documents = documents_of(60, 3)
    low = [set(Linker(noise, LinkingOptions(minimum_rho=0.1)).link(document)) for document in documents]
    high = [set(Linker(noise, LinkingOptions(minimum_rho=0.45)).link(document)) for document in documents]
    assert all(some <= all_ for some, all_ in zip(high, low, strict=True))
    assert sum(map(len, high)) < sum(map(len, low))


def test_no_overlap_and_in_order(noise: LinkDictionary) -> None:
    linker = Linker(noise, LinkingOptions(minimum_rho=0.0, minimum_link_probability=0.0))
    for document in documents_of(100, 4):
        added = linker.link(document)
        assert added == sorted(added)
        spans = sorted([*added, *document.mentions])
        assert all(before.end <= after.start for before, after in itertools.pairwise(spans))


def test_equal_documents_equal_mentions_whatever_came_before(noise: LinkDictionary) -> None:
    documents = documents_of(40, 5)
    linker = Linker(noise)
    expected = [linker.score(document) for document in documents]
    order = list(range(40))
    random.Random(0).shuffle(order)
    again = Linker(noise)
    assert {n: again.score(documents[n]) for n in order} == dict(enumerate(expected))


def test_blocks_do_not_show(noise: LinkDictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(document.text for document in documents_of(40, 6))
    monkeypatch.setattr("trelm_ds.corpus.linking.linker._BLOCK", 10_000)
    expected = Linker(noise).score(Document(text, []))
    assert len(expected) > 64
    for block in (1, 5, 32):
        monkeypatch.setattr("trelm_ds.corpus.linking.linker._BLOCK", block)
        assert Linker(noise).score(Document(text, [])) == expected


@pytest.mark.parametrize("text", ["", " ", "👩‍👩‍👧 🪐", "\u0301", "...", "\n\n", "a" * 500, "日本"])
def test_odd_texts_give_nothing(space: LinkDictionary, text: str) -> None:
    assert Linker(space, LinkingOptions(minimum_rho=0.0)).link(Document(text, [])) == []


@pytest.mark.parametrize("lead_in", ["İİİ ", "ßß ", "e\u0301 ", "👩‍👩‍👧 ", "ﬄ  \u00a0", "“", "日本 "])
def test_offsets_are_exact_behind_anything(space: LinkDictionary, lead_in: str) -> None:
    text = f"{lead_in}Venus, Mars’s Venus"
    added = Linker(space, LinkingOptions(minimum_rho=0.0)).link(Document(text, []))
    assert [text[start:end] for start, end, _ in added] == ["Venus", "Mars", "Venus"]
    assert [start for start, _, _ in added] == [text.index("Venus"), text.index("Mars"), text.rindex("Venus")]


def test_relatedness_is_milne_and_wittens(space: LinkDictionary) -> None:
    """Against the formula on the full sets; no entity here has more documents than the sample holds."""
    documents = planets_and_metals()
    sets = {q: {n for n, d in enumerate(documents) if q in [m.target for m in d.mentions]} for q in (10, 11, 20, 30)}
    rows = space.rows_of(np.array(sorted(sets)))
    matrix = Relatedness(space, 0.0).matrix(rows)
    for i, a in enumerate(sorted(sets)):
        for j, b in enumerate(sorted(sets)):
            large, small = max(len(sets[a]), len(sets[b])), min(len(sets[a]), len(sets[b]))
            shared = len(sets[a] & sets[b])
            distance = np.log(large / shared) / np.log(len(documents) / small) if shared else 1
            assert matrix[i, j] == pytest.approx(max(0.0, 1 - distance))


def test_relatedness_from_samples_is_close(tmp_path: Path) -> None:
    """2,000 documents for each of two entities, half of them shared, estimated from 256."""
    both = Document("Venus Mars", [Mention(0, 5, VENUS), Mention(6, 10, MARS)])
    documents = [both] * 1000 + [linked("Venus", ("Venus", VENUS))] * 1000 + [linked("Mars", ("Mars", MARS))] * 1000
    documents += [linked("lead", ("lead", LEAD))] * 9000
    count_anchors(documents).save(tmp_path / "part")
    dictionary = build_dictionary([tmp_path / "part"], iter([]), graph_of(tmp_path), tmp_path / "d")
    assert len(dictionary.links) == 3 * 256
    exact = 1 - np.log(2000 / 1000) / np.log(12000 / 2000)
    rows = dictionary.rows_of(np.array([VENUS, MARS]))
    assert Relatedness(dictionary, 0.0).matrix(rows)[0, 1] == pytest.approx(exact, abs=0.1)


def test_options_out_of_range(space: LinkDictionary) -> None:
    with pytest.raises(UserError, match="minimum_rho: must be between 0 and 1, got 2"):
        Linker(space, LinkingOptions(minimum_rho=2))
    with pytest.raises(UserError, match="window: must be at least 1, got 0"):
        Linker(space, LinkingOptions(window=0))


def test_without_occurrences_there_is_no_linker(tmp_path: Path) -> None:
    count_anchors(planets_and_metals()).save(tmp_path / "part")
    build_dictionary([tmp_path / "part"], iter([]), graph_of(tmp_path), tmp_path / "d")
    with pytest.raises(UserError, match="count occurrences first"):
        Linker(tmp_path / "d")


def test_round_trip(space: LinkDictionary, tmp_path: Path) -> None:
    space.save(tmp_path / "copy")
    copy = LinkDictionary.load(tmp_path / "copy")
    for name in LinkDictionary.array_names():
        np.testing.assert_array_equal(getattr(copy, name), getattr(space, name))
    assert list(copy.find("mercury and mars")) == list(space.find("mercury and mars")) != []


@pytest.mark.parametrize("name", ["phrases.marisa", "candidates.npy", "links.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_damaged_folder_is_one_line(space: LinkDictionary, tmp_path: Path, name: str, damage: str) -> None:
    space.save(tmp_path / "d")
    path = tmp_path / "d" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 0xFF]) + data[1:])
    with pytest.raises(UserError, match=name) as error:
        LinkDictionary.load(tmp_path / "d")
    assert "\n" not in str(error.value)


def test_a_longer_phrase_wins_unless_its_part_is_linked_far_more_often(tmp_path: Path) -> None:
    """ "Red Planet" is linked in half of its documents; "Red" in every one, or (elsewhere) hardly ever."""
    long = [linked("a Red Planet", ("Red Planet", 21))] * 6 + [Document("a Red Planet", [])] * 6
    part = [linked("some Red", ("Red", 60))] * 20
    rare = dictionary_of([*long, *part], tmp_path / "rare", [])
    options = LinkingOptions(minimum_rho=0.0)
    assert found(Linker(rare, options), Document("the Red Planet", [])) == {"Red Planet": 21}
    long = [linked("a Red Planet", ("Red Planet", 21))] * 2 + [Document("a Red Planet", [])] * 40
    often = dictionary_of([*long, *part * 20], tmp_path / "often", [])
    assert found(Linker(often, options), Document("the Red Planet", [])) == {"Red": 60}
