"""Small worlds for the linker's tests."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.linking import (
    DictionaryOptions,
    LinkDictionary,
    build_dictionary,
    count_anchors,
    count_occurrences,
    set_link_probabilities,
)
from trelm_ds.knowledge import GraphFile, KnowledgeGraph, read_triples

NAMES: list[tuple[int, list[str]]] = [
    (10, ["Mercury", "planet Mercury"]),
    (11, ["Mercury", "quicksilver"]),
    (12, ["Mercury", "Freddie Mercury"]),
    (20, ["Venus"]),
    (21, ["Mars", "Red Planet"]),
    (30, ["lead", "Pb"]),
    (31, ["arsenic"]),
    (40, ["Queen", "The Queen"]),
    (50, ["Red Planet Mars"]),
]
_SPELLINGS = [
    "Mercury",
    "mercury",
    "Venus",
    "Mars",
    "Red Planet",
    "lead",
    "Lead",
    "arsenic",
    "Queen",
    "Freddie Mercury",
]
_ENTITIES = {"mercury": [10, 11, 12], "queen": [40, 99]}


def documents_of(count: int, seed: int) -> list[Document]:
    """Sentences of names and filler, some of the names linked, now and then to something unexpected."""
    draw = random.Random(seed)
    first = {spelling.lower(): qid for qid, spellings in reversed(NAMES) for spelling in spellings}
    documents = []
    for _ in range(count):
        text, mentions = "It", list[Mention]()
        for _ in range(draw.randint(0, 6)):
            name = draw.choice(_SPELLINGS)
            text += draw.choice([" and ", ", so ", " is not "])
            if draw.random() < 0.5:
                qid = draw.choice(_ENTITIES.get(name.lower(), [first[name.lower()]]))
                mentions.append(Mention(len(text), len(text) + len(name), qid))
            text += name
        documents.append(Document(text + ".", mentions))
    return documents


def graph_of(folder: Path, triples: str = "Q10\tP1\tQ20\nQ21\tP1\tQ20\nQ11\tP2\tQ30\nQ12\tP3\tQ40\n") -> KnowledgeGraph:
    path = folder / "triples.txt"
    path.write_text(triples)
    return KnowledgeGraph.from_triples(read_triples([GraphFile(path)])[0])


def dictionary_of(
    documents: Sequence[Document],
    folder: Path,
    names: Iterable[tuple[int, list[str]]] = NAMES,
) -> LinkDictionary:
    """A dictionary with the statistics of `documents`, made in one chunk."""
    part = folder.with_name(f"{folder.name}-anchors")
    count_anchors(documents).save(part)
    options = DictionaryOptions(sample=20)
    dictionary = build_dictionary([part], iter(names), graph_of(folder.parent), folder, options)
    return set_link_probabilities(folder, [count_occurrences(dictionary, documents)])
