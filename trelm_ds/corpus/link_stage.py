"""Stages of entity linking: count anchors, build a dictionary, count occurrences of its phrases in all the text.

documents --anchors--> dictionary --occurrences--> dictionary with link probabilities
 (chunks, parallel)      (once)   (chunks, parallel)      (once)
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trelm_ds.corpus import workers
from trelm_ds.corpus.artifacts import Artifact, find, key_of, make, obtain
from trelm_ds.corpus.encode import resolved_documents
from trelm_ds.corpus.linking import (
    LinkDictionary,
    OccurrenceCounts,
    build_dictionary,
    count_anchors,
    count_occurrences,
    set_link_probabilities,
)
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.progress import track

_COUNTS = "counts.npy"


@dataclass(frozen=True)
class LinkTask:
    """Inputs for counting anchors or occurrences in one chunk.

    Attributes:
        documents: folder of the chunk's extracted documents.
        titles: folder of the title table; None if mentions already have QIDs.
        first_document: index of the chunk's first document in the corpus.
        dictionary: folder of the dictionary whose phrases to count; None to count anchors.
        folder, key: the artifact to make.
    """

    documents: Path
    titles: Path | None
    first_document: int
    dictionary: Path | None
    folder: Path
    key: str


def count(task: LinkTask) -> Artifact:
    """Find or make a chunk's counts of anchors, or of the dictionary's phrases."""
    if found := find(task.folder, task.key):
        return found
    with make(task.folder, task.key) as (work, _):
        documents = resolved_documents(task.documents, task.titles, Counter())
        if task.dictionary is None:
            count_anchors(documents, task.first_document).save(work / "anchors")
        else:
            count_occurrences(LinkDictionary.load(task.dictionary), documents).save(work / _COUNTS)
    return obtain(task.folder, task.key)


def link_dictionary(
    documents: list[Artifact],
    titles: Artifact | None,
    graph: Artifact,
    names: Callable[[], Iterator[tuple[int, list[str]]]],
    names_hash: list[str],
    work: Path,
    n_workers: int,
) -> Artifact:
    """Find or make the linker's dictionary for this corpus, in the folder `dictionary` of the returned artifact.

    Args:
        documents: the extracted chunks, in order.
        titles: the title table, or None if mentions already have QIDs.
        graph: the knowledge graph.
        names: starts a pass over the names of all entities.
        names_hash: hashes of the files with these names.
        work: folder for the artifacts.
        n_workers: number of processes.
    """
    resolved = [] if titles is None else [titles.digest]
    firsts, before = [], 0
    for artifact in documents:
        firsts.append(before)
        before += artifact.notes["counts"].get("documents", 0)

    def run(stage: str, dictionary: Artifact | None) -> list[Artifact]:
        """Count all chunks."""
        folder = None if dictionary is None else dictionary.folder / "dictionary"
        made_from = [] if dictionary is None else [dictionary.digest]
        tasks = [
            LinkTask(
                artifact.folder,
                None if titles is None else titles.folder,
                first,
                folder,
                work / stage / artifact.folder.name,
                key_of(stage, artifact.digest, resolved, first, made_from),
            )
            for artifact, first in zip(documents, firsts, strict=True)
        ]
        results = workers.run(count, iter(tasks), n_workers)
        found = list(track(results, f"counting {stage}, chunks", total=len(tasks)))
        return sorted(found, key=lambda artifact: artifact.folder.name)

    anchors = run("anchors", None)
    folder, key = work / "dictionary", key_of("dictionary", [one.digest for one in anchors], graph.digest, names_hash)
    dictionary = find(folder, key)
    if dictionary is None:
        with make(folder, key) as (made, _):
            partials = [artifact.folder / "anchors" for artifact in anchors]
            build_dictionary(partials, names(), KnowledgeGraph.load(graph.folder), made / "dictionary")
        dictionary = obtain(folder, key)
    occurrences = run("occurrences", dictionary)
    folder, key = work / "linker", key_of("linker", dictionary.digest, [one.digest for one in occurrences])
    linker = find(folder, key)
    if linker is None:
        with make(folder, key) as (made, _):
            shutil.copytree(dictionary.folder / "dictionary", made / "dictionary")
            found = (OccurrenceCounts.load(artifact.folder / _COUNTS) for artifact in occurrences)
            set_link_probabilities(made / "dictionary", found)
        linker = obtain(folder, key)
    return linker
