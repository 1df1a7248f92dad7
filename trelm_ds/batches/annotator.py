"""Knowledge for a micro-batch: which mentions and words are items, what is injected, what is asked (Eq. 2, 4, 6, 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trelm_ds.batches.collator import BatchPart, Sequences, SideDocuments
from trelm_ds.batches.knowledge_index import KnowledgeIndex, graph_rows
from trelm_ds.batches.negatives import Negatives
from trelm_ds.batches.queries import FactRequests, QueryWriter
from trelm_ds.batches.spans import Spans, WordFinder, items_of
from trelm_ds.config import Config
from trelm_ds.corpus import TOKEN_COUNTS, TokenizerInfo
from trelm_ds.errors import UserError
from trelm_ds.files import load_array
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_uniform
from trelm_ds.knowledge import TripleDraw, Triples
from trelm_ds.model import AssessingBatch, Batch, KnowledgeItems
from trelm_ds.ragged import spread
from trelm_ds.shards import Manifest


class Annotator:
    """Finds the knowledge of micro-batches: every draw is keyed by (seed, epoch, sample id, mention).

    So a sample has the same items and facts on any rank, in any worker and beside any other samples. The dataset's
    knowledge is memory-mapped, and another process opens it anew.

    Args:
        dataset: folder with all but, perhaps, the shards.
        word_starts: bool [V], whether a token begins a word.
        inverse_marker: int64 [n], tokens before the relation of a fact whose head is asked for.
        bar: of importance, where another process has found it.

    Attributes:
        index: the rows of memory bank and vector table.
        asks: whether facts may be asked for at all.

    Raises:
        UserError: the dataset lacks what the settings need.
    """

    token_settings = "cka.max_token_share"

    def __init__(
        self,
        dataset: Path,
        config: Config,
        info: TokenizerInfo,
        word_starts: np.ndarray,
        inverse_marker: np.ndarray,
        bar: float | None = None,
    ) -> None:
        self._arguments = dataset, config, info, word_starts, inverse_marker
        self.config = config
        self.index = index = KnowledgeIndex.open(dataset, config, bar)
        self._seed, self._max_length = config.loader.seed, Manifest.load(dataset).max_length
        self.asks = index.chooses and config.cka.decoder != "none"
        self._has_items = index.n_memory > 0 or len(index.vector_entities) > 0
        self._triples = TripleDraw(index.graph, index.names, config.cka.max_answer_tokens)
        self._queries = QueryWriter(index.names, info, inverse_marker)
        ordinary = np.ones(info.vocab_size, dtype=bool)
        ordinary[list(info.special_ids)] = False
        self._words = WordFinder(index.memory_words, word_starts, ordinary, len(index.memory_entities))
        n_negatives = config.cka.negatives if self.asks else 0
        self._negatives = Negatives(_token_counts(dataset, info), info.special_ids, n_negatives, self._seed)

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotator, (*self._arguments, self.index.selector.bar)

    @property
    def token_share(self) -> float:
        """Tokens of the queries as a share of the sequences' tokens, on average at most."""
        return self.config.cka.max_token_share if self.asks and self.config.cka.decoder == "query" else 0.0

    def negative_probabilities(self) -> np.ndarray:
        """Return Q of Eq. 2, by which the negatives are drawn: float32 [V]."""
        return self._negatives.probabilities

    def negatives(self, step: int) -> np.ndarray:
        """Draw the tokens that compete with the answers of a step, int64 [C]; none where nothing is asked."""
        return self._negatives(step)

    def __call__(self, sequences: Sequences, base: int) -> BatchPart:
        """Find items and facts; the queries about them are the part's documents."""
        mentions, chosen, facts = self._mentions(sequences)
        facts = self._kept(sequences, mentions, facts)
        words = self._words(sequences, mentions.of(chosen))
        words = words._replace(applied=self._applied(Stream.INJECTED_WORD, sequences, words))
        queries = SideDocuments.none()
        if self.asks and self.config.cka.decoder == "query":
            queries = self._queries.write(facts, mentions, sequences.tokens)
        objectives = {}
        if self.asks:
            objectives["cka"] = self._assessing(sequences, mentions, facts, queries, base)
        counts = {
            "mentions": int(chosen.sum()),
            "injected": int(mentions.applied.sum()),
            "words": len(words.first),
            "facts": len(facts.mention),
            "query tokens": len(queries.tokens),
        }
        items = self._items(sequences, mentions, chosen, words, facts, queries, base) if self._has_items else None
        return BatchPart(documents=queries, objectives=objectives, counts=counts, items=items)

    def _draw(self, stream: Stream, sequences: Sequences, spans: Spans) -> np.ndarray:
        """Return the bits of each span's key: uint64 [n]."""
        of_sequence = keyed_bits(self._seed, stream, sequences.epochs, sequences.sample_ids)
        return keyed_bits(spans.number, after=of_sequence[spans.owner])

    def _applied(self, stream: Stream, sequences: Sequences, spans: Spans) -> np.ndarray:
        """Decide whether a span may follow Eq. 7 in this pass: bool [n]."""
        # An embedding in the place of a mask would hide that there is something to predict.
        first, last = (np.searchsorted(sequences.mlm_positions, ends) for ends in (spans.first, spans.last))
        drawn = keyed_uniform(after=self._draw(stream, sequences, spans))
        return (first >= last) & (drawn < self.config.injection.probability)

    def _mentions(self, sequences: Sequences) -> tuple[Spans, np.ndarray, FactRequests]:
        """Return mentions with what is injected, which are chosen bool [n], and all that could be asked about them."""
        spans, chosen, rows = self._looked_at(sequences)
        applied = chosen & self._applied(Stream.INJECTED_MENTION, sequences, spans)
        candidates = self._triples.candidates(rows, self._draw(Stream.TRIPLE, sequences, spans))
        injected = self._triples.injected(candidates, self._hidden(sequences, spans, candidates))
        if self.config.injection.source == "none":  # Eq. 7 with the mention's own embeddings
            applied &= self.config.memory.enabled
            injected = injected._replace(has=np.zeros_like(applied))
        else:
            applied &= injected.has
            injected = injected._replace(has=applied)
        asked = self._triples.asked(candidates, injected, self.config.cka.triple, self.config.cka.facts_per_mention)
        entity, relation = self._vector_rows(injected)
        spans = spans._replace(applied=applied, entity=entity, relation=relation, sign=injected.sign * injected.has)
        if self.config.cka.decoder == "product" and self.config.cka.triple == "other":
            # The mention's state sees the whole sequence, what is injected into other mentions included.
            own, n = spans.owner, len(self.index.graph.entities)
            shown = (own * n + injected.other)[injected.has]
            asked = asked._replace(has=asked.has & ~np.isin(own[:, None] * n + asked.other, shown))
        if self.config.cka.decoder == "mention":  # decodes what was injected
            which = np.flatnonzero(injected.has)
            return spans, chosen, FactRequests(mention=which, place=np.zeros_like(which), triples=injected.of(which))
        which, place = np.nonzero(asked.has)
        return spans, chosen, FactRequests(mention=which, place=place, triples=asked.of(asked.has))

    def _hidden(self, sequences: Sequences, spans: Spans, candidates: Triples) -> np.ndarray:
        """Mark candidates, bool [M, K], whose other entity is masked in the sequence: h_e would give it away."""
        owner, first, last, qids = np.ascontiguousarray(sequences.mentions.T)
        start = sequences.starts[owner]
        begins, ends = (np.searchsorted(sequences.mlm_positions, start + place) for place in (first, last))
        masked = np.flatnonzero((begins < ends) & (self.index.graph.degrees(qids) > 0))
        n = len(self.index.graph.entities)
        keys = owner[masked].astype(np.int64) * n + graph_rows(self.index.graph, qids[masked])
        return np.isin(spans.owner[:, None] * n + candidates.other, keys)

    def _looked_at(self, sequences: Sequences) -> tuple[Spans, np.ndarray, np.ndarray]:
        """Return mentions chosen or to be asked about, which are chosen bool [n], and their graph rows int64 [n]."""
        index, every = self.index, np.ascontiguousarray(sequences.mentions[:, 0])
        cosines = None if index.scores is None else index.scores.at(sequences.blocks, sequences.places)
        chosen = wanted = index.selector(sequences.mentions, cosines)
        if self.asks and self.config.cka.mentions == "all":
            wanted = chosen | (index.graph.degrees(sequences.mentions[:, 3]) > 0)
        kept = np.flatnonzero(wanted)
        owner, first, last, qids = np.ascontiguousarray(sequences.mentions[kept].T)
        number = kept - np.searchsorted(every, owner)
        start = sequences.starts[owner]
        memory = np.full(len(kept), -1)
        if len(index.memory_entities):
            memory = np.where(chosen[kept], np.searchsorted(index.memory_entities, qids), -1)
        spans = Spans.plain(owner.astype(np.int64), number, start + first, start + last, memory)
        return spans, chosen[kept], graph_rows(index.graph, qids)

    def _vector_rows(self, triples: Triples) -> tuple[np.ndarray, np.ndarray]:
        """Return rows of the vector table of other entity and relation, int64 [n] each; -1 where there is no triple."""
        known = self.index.vector_entities
        entity = np.searchsorted(known, triples.other.astype(known.dtype))
        return np.where(triples.has, entity, -1), np.where(triples.has, len(known) + triples.relation, -1)

    def _kept(self, sequences: Sequences, mentions: Spans, facts: FactRequests) -> FactRequests:
        """Sample the facts to ask in this pass, within `cka.max_token_share`."""
        if not self.asks:
            return facts.of(np.zeros(0, dtype=np.int64))
        if self.config.cka.decoder != "query":
            return facts
        length = self._queries.lengths(facts, mentions)
        fits = length <= self._max_length
        facts, length = facts.of(fits), length[fits]
        spans = mentions.of(facts.mention)
        total = np.bincount(spans.owner, weights=length, minlength=len(sequences.lengths))  # of a sequence
        allowed = self.config.cka.max_token_share * sequences.lengths[spans.owner] / total[spans.owner]
        drawn = keyed_uniform(facts.place, after=self._draw(Stream.KEPT_FACT, sequences, spans))
        return facts.of(drawn < allowed)

    def _items(
        self,
        sequences: Sequences,
        mentions: Spans,
        chosen: np.ndarray,
        words: Spans,
        facts: FactRequests,
        queries: SideDocuments,
        base: int,
    ) -> KnowledgeItems:
        """Make the items, whose embeddings in the queries follow Eq. 7 as well."""
        # Without memory an item that is not applied would do nothing.
        listed = np.flatnonzero(chosen if self.config.memory.enabled else mentions.applied)
        spans = mentions.of(listed).beside(words)
        order = np.argsort(spans.first)
        items = items_of(sequences, spans.of(order), self.config.memory.window)
        places = self.config.injection.places
        if places == "queries":  # what has no triple, as a word, stays in the text
            kept = items.entity[items.token_items] < 0
            items = items._replace(token_rows=items.token_rows[kept], token_items=items.token_items[kept])
        if places == "text" or not len(queries.lengths):
            return items
        item = np.full(len(mentions.first), -1)  # of each mention
        item[listed] = np.argsort(order)[: len(listed)]
        again = np.flatnonzero(mentions.applied[facts.mention])
        mention = facts.mention[again]
        length = (mentions.last - mentions.first)[mention]
        behind_cls = base + (np.cumsum(queries.lengths) - queries.lengths)[again] + 1
        rows = torch.from_numpy(spread(behind_cls, length))
        return items._replace(
            token_rows=torch.cat([items.token_rows, rows]),
            token_items=torch.cat([items.token_items, torch.from_numpy(np.repeat(item[mention], length))]),
        )

    def _assessing(
        self, sequences: Sequences, mentions: Spans, facts: FactRequests, queries: SideDocuments, base: int
    ) -> AssessingBatch:
        routed = self._routed(sequences, mentions.owner[facts.mention])
        if self.config.cka.decoder == "query":
            return self._queries.by_query(facts, queries, base, routed)
        relations = len(self.index.vector_entities) + facts.triples.relation
        if self.config.cka.decoder == "mention":
            return self._queries.by_mention(facts, mentions, sequences.tokens, relations)
        return self._queries.by_span(facts, mentions, relations, routed)

    def _routed(self, sequences: Sequences, owner: np.ndarray) -> np.ndarray:
        """Mark the facts that attribution uses, bool [F]; with decoder product at most one of a sequence.

        Args:
            owner: int64 [F], the sequence of each fact, ascending.
        """
        routing = self.config.routing
        if not routing.enabled:
            return np.zeros(len(owner), dtype=bool)
        keys = keyed_bits(self._seed, sequences.epochs, sequences.sample_ids)
        routed = (keyed_uniform(Stream.ROUTED_SEQUENCE, after=keys) < routing.sample_fraction)[owner]
        if self.config.cka.decoder == "product":
            # Drawn like the sequences, so that every fact has its turn over the passes.
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            counts = np.diff(first, append=len(owner))
            drawn = keyed_uniform(Stream.ROUTED_FACT, after=keys)
            one = np.zeros(len(owner), dtype=bool)
            one[first + (drawn[owner[first]] * counts).astype(np.int64)] = True
            routed &= one
        return routed


def number_rows(batches: list[Batch]) -> tuple[list[Batch], torch.Tensor, torch.Tensor]:
    """Replace rows of the whole bank and vector table by indices into those that a step's batches need.

    Returns:
        the batches, and the needed rows of the bank int64 [U] and of the vector table int64 [U'], ascending.
    """
    items = [batch.items for batch in batches if batch.items is not None]
    facts = [batch.objectives["cka"] for batch in batches if "cka" in batch.objectives]
    vectors = [rows for one in items for rows in (one.entity, one.relation)] + [one.relations for one in facts]
    memory_rows, vector_rows = _distinct([one.memory for one in items]), _distinct(vectors)
    numbered = []
    for batch in batches:
        if (one := batch.items) is not None:
            entity, relation = (_index(vector_rows, rows) for rows in (one.entity, one.relation))
            one = one._replace(memory=_index(memory_rows, one.memory), entity=entity, relation=relation)
        objectives = dict(batch.objectives)
        if (facts_of := objectives.get("cka")) is not None:
            objectives["cka"] = facts_of._replace(relations=_index(vector_rows, facts_of.relations))
        numbered.append(batch._replace(items=one, objectives=objectives))
    return numbered, torch.from_numpy(memory_rows), torch.from_numpy(vector_rows)


def _distinct(rows: list[torch.Tensor]) -> np.ndarray:
    every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *rows]))
    return every[every >= 0]


def _index(distinct: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """Find the place of each row among the distinct ones; -1 stays."""
    return torch.from_numpy(np.where(rows.numpy() >= 0, np.searchsorted(distinct, rows.numpy()), -1))


def _token_counts(dataset: Path, info: TokenizerInfo) -> np.ndarray:
    """Read how often each token occurs in the corpus: int64 [V]."""
    path = dataset / TOKEN_COUNTS
    counts = np.asarray(load_array(path))
    if counts.shape != (info.vocab_size,):
        raise UserError(f"{path}: not of the dataset's tokenizer; run `trelm prepare` again")
    return counts
