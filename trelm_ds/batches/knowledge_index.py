"""Which entities, relations and words a run keeps vectors and memory of: a function of dataset and settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trelm_ds.config import Config, MemoryConfig
from trelm_ds.corpus import ENTITIES_FOLDER, GRAPH_FOLDER, NAMES_FOLDER, TOKEN_COUNTS, WORDS_FOLDER, WordTable
from trelm_ds.importance import ImportanceScores, load_frequencies, open_scores, open_selector
from trelm_ds.knowledge import KnowledgeGraph, MentionSelector, Names, long_tail_words
from trelm_ds.ragged import gather, offsets_of
from trelm_ds.shards import Manifest

# What is read of a dataset beside its sequences and tokenizer.
KNOWLEDGE_FILES = (ENTITIES_FOLDER, GRAPH_FOLDER, NAMES_FOLDER, WORDS_FOLDER, TOKEN_COUNTS)


@dataclass(frozen=True)
class KnowledgeIndex:
    """Numbers the rows of the memory bank and of the vector table, the same on every rank and in every worker.

    Bank: the M_e entities, then the M_w words. Vectors: the V_e entities, then all R relations, or nothing at all.

    Attributes:
        selector: chooses mentions.
        scores: of the dataset's mentions; None where the selector goes by frequency alone.
        graph, names, words: of the dataset, memory-mapped.
        memory_entities: int32 [M_e], numbers of QIDs, ascending: all entities that may be chosen.
        memory_words: uint64 [M_w], hashes of the long-tail words, ascending.
        vector_entities: int32 [V_e], rows of the graph's entities, ascending: the other ends of the triples of all
            entities that may be chosen. Empty where nothing is injected.
        n_relations: R, or 0 where neither injection nor the decoder product needs vectors.
    """

    selector: MentionSelector
    scores: ImportanceScores | None
    graph: KnowledgeGraph
    names: Names
    words: WordTable
    memory_entities: np.ndarray
    memory_words: np.ndarray
    vector_entities: np.ndarray
    n_relations: int

    @classmethod
    def open(cls, dataset: Path, config: Config, bar: float | None = None) -> KnowledgeIndex:
        """Open a dataset's knowledge.

        Args:
            dataset: its folder.
            bar: of importance, where another process has found it: that may take a pass over the dataset.

        Raises:
            UserError: scores are required but missing or unfit, or the dataset lacks a file.
        """
        selection = config.selection
        kind = "none" if selection.strategy == "none" else selection.importance
        scores = open_scores(dataset, Manifest.load(dataset), kind)
        if bar is None:
            selector = open_selector(dataset, selection, scores)
        else:
            selector = MentionSelector(selection, load_frequencies(dataset), bar)
        graph, names = KnowledgeGraph.load(dataset / GRAPH_FOLDER), Names.load(dataset / NAMES_FOLDER)
        words = WordTable.load(dataset / WORDS_FOLDER)
        none, chosen = np.zeros(0, dtype=np.int32), selector.entities
        injects = config.injection.source != "none"
        needs_vectors = len(chosen) > 0 and (injects or config.cka.decoder == "product")  # mention injects
        return cls(
            selector,
            scores,
            graph,
            names,
            words,
            chosen if config.memory.enabled else none,
            np.asarray(words.hashes)[_long_tail(words, config.memory)],
            _other_ends(graph, chosen) if injects else none,
            len(graph.relations) if needs_vectors else 0,
        )

    @property
    def chooses(self) -> bool:
        """Whether there is an entity whose mentions may be chosen."""
        return len(self.selector.entities) > 0

    @property
    def n_memory(self) -> int:
        """Rows of the memory bank."""
        return len(self.memory_entities) + len(self.memory_words)

    @property
    def n_vectors(self) -> int:
        """Rows of the vector table."""
        return len(self.vector_entities) + self.n_relations

    def memory_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that each bank row's memory starts from: offsets int64 [n_memory + 1], tokens int32.

        An entity without a name has none.
        """
        rows = graph_rows(self.graph, self.memory_entities)
        in_words = np.searchsorted(self.words.hashes, self.memory_words)
        entities = gather(self.names.entity_offsets, self.names.entity_tokens, rows)
        words = gather(self.words.offsets, self.words.tokens, in_words)
        tokens, lengths = (np.concatenate(parts) for parts in zip(entities, words, strict=True))
        return offsets_of(lengths), tokens

    def describe_importance(self) -> str:
        """Say by what mentions are chosen."""
        if not self.chooses:
            return "nothing is chosen"
        if self.scores is None:
            return f"{self.selector.selection.strategy} entities by frequency alone, without scores of importance"
        top = f"top {100 * self.selector.selection.quantile:g}% by importance"
        return f"{self.selector.selection.strategy} entities, {top}"

    def describe(self) -> dict[str, int]:
        """Count the rows of each kind, by name."""
        return {
            "memory entities": len(self.memory_entities),
            "memory words": len(self.memory_words),
            "vectors of entities": len(self.vector_entities),
            "vectors of relations": self.n_relations,
        }


def graph_rows(graph: KnowledgeGraph, qids: np.ndarray) -> np.ndarray:
    """Find the graph's rows of QID numbers int [n], all of which it has: int64 [n]."""
    return np.searchsorted(graph.entities, qids.astype(graph.entities.dtype))


def _long_tail(words: WordTable, memory: MemoryConfig) -> np.ndarray:
    """Mark the words that have memory: bool [W]."""
    if not (memory.enabled and memory.words):
        return np.zeros(len(words.hashes), dtype=bool)
    return long_tail_words(words.frequencies, *memory.word_frequency, quantiles=memory.word_quantiles)


def _other_ends(graph: KnowledgeGraph, qids: np.ndarray) -> np.ndarray:
    """Find all entities that share a triple with one of `qids`: rows int32 [V_e], ascending."""
    mine = np.zeros(len(graph.entities), dtype=bool)
    mine[graph_rows(graph, qids)] = True
    found = np.zeros(len(graph.entities), dtype=bool)
    for offsets, others in ((graph.out_offsets, graph.out_entities), (graph.in_offsets, graph.in_entities)):
        found[np.asarray(others)[np.repeat(mine, np.diff(offsets))]] = True
    return np.flatnonzero(found).astype(np.int32)
