"""Knowledge for a micro-batch: which mentions and words are items, what is injected, what is asked (Eq. 2, 4, 6, 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trelm_ds.batches.batch import Batch, Facts, Items
from trelm_ds.batches.knowledge_index import KnowledgeIndex, graph_rows
from trelm_ds.batches.negatives import Negatives
from trelm_ds.batches.queries import Asked, Queries, Questions
from trelm_ds.batches.spans import Sequences, Spans, WordFinder, items_of
from trelm_ds.config import Config
from trelm_ds.corpus import TOKEN_COUNTS, TokenizerInfo
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import keyed_bits, keyed_uniform
from trelm_ds.knowledge import TripleDraw, Triples
from trelm_ds.model import Tail
from trelm_ds.ragged import offsets_of, spread
from trelm_ds.shards import Manifest

_APPLY, _TRIPLE, _KEEP, _APPLY_WORD, _ROUTE, _ROUTE_FACT = 32, 33, 34, 35, 36, 37  # set the draws' keys apart


class Annotation(NamedTuple):
    """A micro-batch with its knowledge; fields as in `Batch`, counts as in `StepBatches`.

    Until `number_rows`, `memory`, `entity`, `relation` and `relations` are rows of the whole bank and vector table.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    items: Items | None
    facts: Facts | None
    queries: Tail | None
    counts: dict[str, int]


class Annotator:
    """Finds the knowledge of micro-batches: every draw is keyed by (seed, epoch, sample id, mention).

    So a sample has the same items and facts on any rank, in any worker and beside any other samples. The dataset's
    knowledge is memory-mapped, and another process opens it anew.

    Args:
        dataset: folder with all but, perhaps, the shards.
        config: checked settings.
        info: of the tokenizer.
        word_starts: bool [V], whether a token begins a word.
        inverse_marker: int64 [n], tokens before the relation of a fact whose head is asked for.
        bar: of importance, where another process has found it.

    Attributes:
        index: the rows of memory bank and vector table.

    Raises:
        UserError: the dataset lacks what the settings need.
    """

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
        self._has_items = index.n_memory > 0 or len(index.vector_entities) > 0
        self._has_facts = index.chooses and config.cka.decoder != "none"
        self._triples = TripleDraw(index.graph, index.names, config.cka.max_answer_tokens)
        self._questions = Questions(index.names, info, inverse_marker)
        ordinary = np.ones(info.vocab_size, dtype=bool)
        ordinary[list(info.special_ids)] = False
        self._words = WordFinder(index.memory_words, word_starts, ordinary, len(index.memory_entities))
        n_negatives = config.cka.negatives if self._has_facts else 0
        self._negatives = Negatives(_token_counts(dataset, info), info.special_ids, n_negatives, self._seed)

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotator, (*self._arguments, self.index.selector.bar)

    @property
    def asks(self) -> bool:
        """Whether facts may be asked for at all."""
        return self._has_facts

    @property
    def query_share(self) -> float:
        """Tokens of the queries as a share of the sequences' tokens, on average at most."""
        return self.config.cka.max_token_share if self._has_facts and self.config.cka.decoder == "query" else 0.0

    def negative_probabilities(self) -> np.ndarray:
        """float32 [V]: Q of Eq. 2, by which the negatives are drawn."""
        return self._negatives.probabilities

    def negatives(self, step: int) -> np.ndarray:
        """int64 [C]: tokens that compete with the answers of a step; none where nothing is asked."""
        return self._negatives(step)

    def __call__(self, read: Sequences) -> Annotation:
        """The sequences with the queries about them behind, and what is known of both."""
        mentions, chosen, asked = self._mentions(read)
        asked = self._kept(read, mentions, asked)
        words = self._words(read, mentions.of(chosen))
        words = words._replace(applied=self._applied(_APPLY_WORD, read, words))
        nothing = asked.of(np.zeros(0, dtype=np.int64))
        queries = self._questions.write(asked if self.config.cka.decoder == "query" else nothing, read.tokens)
        lengths = np.concatenate([read.lengths, queries.lengths])
        counts = {
            "mentions": int(chosen.sum()),
            "injected": int(mentions.applied.sum()),
            "words": len(words.first),
            "facts": len(asked.mention),
            "query tokens": len(queries.tokens),
        }
        count = len(queries.lengths)
        return Annotation(
            torch.from_numpy(np.concatenate([read.masked, queries.tokens])),
            torch.from_numpy(offsets_of(lengths).astype(np.int32)),
            int(lengths.max()),
            self._items(read, mentions, chosen, words, asked, queries) if self._has_items else None,
            self._facts(asked, queries, len(read.tokens), self._routed(read, mentions, asked))
            if self._has_facts
            else None,
            Tail(count, len(queries.tokens), int(queries.lengths.max())) if count else None,
            counts,
        )

    def _draw(self, what: int, read: Sequences, spans: Spans) -> np.ndarray:
        """uint64 [n]: the bits of each span's key."""
        return keyed_bits(spans.number, after=keyed_bits(self._seed, what, read.epochs, read.sample_ids)[spans.owner])

    def _applied(self, what: int, read: Sequences, spans: Spans) -> np.ndarray:
        """bool [n]: whether a span may follow Eq. 7 in this pass."""
        # An embedding in the place of a mask would hide that there is something to predict.
        hidden = np.searchsorted(read.predicted, spans.first) < np.searchsorted(read.predicted, spans.last)
        return ~hidden & (keyed_uniform(after=self._draw(what, read, spans)) < self.config.injection.probability)

    def _mentions(self, read: Sequences) -> tuple[Spans, np.ndarray, Asked]:
        """Mentions with what is injected, which of them are chosen bool [n], and all that could be asked about them."""
        spans, chosen, rows = self._looked_at(read)
        applied = chosen & self._applied(_APPLY, read, spans)
        candidates = self._triples.candidates(rows, self._draw(_TRIPLE, read, spans))
        injected = self._triples.injected(candidates)
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
        which, place = np.nonzero(asked.has)
        return spans, chosen, Asked(which, place, spans.first[which], spans.last[which], asked.of(asked.has))

    def _looked_at(self, read: Sequences) -> tuple[Spans, np.ndarray, np.ndarray]:
        """The mentions that are chosen or may be asked about, which are chosen bool [n], and their graph rows [n]."""
        index, every = self.index, np.ascontiguousarray(read.mentions[:, 0])
        cosines = None if index.scores is None else index.scores.at(read.blocks, read.places)
        chosen = wanted = index.selector(read.mentions, cosines)
        if self._has_facts and self.config.cka.mentions == "all":
            wanted = chosen | (index.graph.degrees(read.mentions[:, 3]) > 0)
        kept = np.flatnonzero(wanted)
        owner, first, last, qids = np.ascontiguousarray(read.mentions[kept].T)
        number = kept - np.searchsorted(every, owner)
        start = (np.cumsum(read.lengths) - read.lengths)[owner]
        memory = np.full(len(kept), -1)
        if len(index.memory_entities):
            memory = np.where(chosen[kept], np.searchsorted(index.memory_entities, qids), -1)
        spans = Spans.plain(owner.astype(np.int64), number, start + first, start + last, memory)
        return spans, chosen[kept], graph_rows(index.graph, qids)

    def _vector_rows(self, triples: Triples) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] each: rows of the vector table of other entity and relation; -1 where there is no triple."""
        known = self.index.vector_entities
        entity = np.searchsorted(known, triples.other.astype(known.dtype))
        return np.where(triples.has, entity, -1), np.where(triples.has, len(known) + triples.relation, -1)

    def _kept(self, read: Sequences, mentions: Spans, asked: Asked) -> Asked:
        """What is asked in this pass: for queries a share of all, so that they cost no more than they may."""
        if not self._has_facts:
            return asked.of(np.zeros(0, dtype=np.int64))
        if self.config.cka.decoder == "product":
            return asked
        length = self._questions.lengths(asked)
        fits = length <= self._max_length
        asked, length = asked.of(fits), length[fits]
        spans = mentions.of(asked.mention)
        total = np.bincount(spans.owner, weights=length, minlength=len(read.lengths))  # of a sequence
        allowed = self.config.cka.max_token_share * read.lengths[spans.owner] / total[spans.owner]
        return asked.of(keyed_uniform(asked.place, after=self._draw(_KEEP, read, spans)) < allowed)

    def _items(
        self, read: Sequences, mentions: Spans, chosen: np.ndarray, words: Spans, asked: Asked, queries: Queries
    ) -> Items:
        """The items, whose embeddings in the queries follow Eq. 7 as well."""
        # Without memory an item that is not applied would do nothing.
        listed = np.flatnonzero(chosen if self.config.memory.enabled else mentions.applied)
        spans = mentions.of(listed).beside(words)
        order = np.argsort(spans.first)
        items = items_of(read, spans.of(order), self.config.memory.window)
        if not len(queries.mention):
            return items
        item = np.full(len(mentions.first), -1)  # of each mention
        item[listed] = np.argsort(order)[: len(listed)]
        again = np.flatnonzero(mentions.applied[asked.mention])
        length = (asked.last - asked.first)[again]
        rows = spread(len(read.tokens) + queries.mention[again], length)
        return items._replace(
            token_rows=torch.cat([items.token_rows, torch.from_numpy(rows)]),
            token_items=torch.cat([items.token_items, torch.from_numpy(np.repeat(item[asked.mention[again]], length))]),
        )

    def _facts(self, asked: Asked, queries: Queries, base: int, routed: np.ndarray) -> Facts:
        if self.config.cka.decoder == "product":
            relations = len(self.index.vector_entities) + asked.triples.relation
            return self._questions.by_span(asked, relations, routed)
        return self._questions.by_query(asked, queries, base, routed)

    def _routed(self, read: Sequences, mentions: Spans, asked: Asked) -> np.ndarray:
        """bool [F]: the facts of a sample of the sequences; one of each where all stand in the same document."""
        routing = self.config.routing
        if not routing.enabled:
            return np.zeros(len(asked.mention), dtype=bool)
        drawn = keyed_uniform(_ROUTE, after=keyed_bits(self._seed, read.epochs, read.sample_ids))
        owner = mentions.owner[asked.mention]
        routed = (drawn < routing.sample_fraction)[owner]
        if self.config.cka.decoder == "product":
            # Drawn like the sequences, so that every fact has its turn over the passes.
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            counts = np.diff(first, append=len(owner))
            drawn = keyed_uniform(_ROUTE_FACT, after=keyed_bits(self._seed, read.epochs, read.sample_ids))
            one = np.zeros(len(owner), dtype=bool)
            one[first + (drawn[owner[first]] * counts).astype(np.int64)] = True
            routed &= one
        return routed


def number_rows(batches: list[Batch]) -> tuple[list[Batch], torch.Tensor, torch.Tensor]:
    """Replaces rows of the whole bank and vector table by indices into those that a step's batches need.

    Returns:
        the batches, and the needed rows of the bank int64 [U] and of the vector table int64 [U'], ascending.
    """
    items = [batch.items for batch in batches if batch.items is not None]
    facts = [batch.facts for batch in batches if batch.facts is not None]
    vectors = [rows for one in items for rows in (one.entity, one.relation)] + [one.relations for one in facts]
    memory_rows, vector_rows = _distinct([one.memory for one in items]), _distinct(vectors)
    numbered = []
    for batch in batches:
        if (one := batch.items) is not None:
            entity, relation = (_index(vector_rows, rows) for rows in (one.entity, one.relation))
            one = one._replace(memory=_index(memory_rows, one.memory), entity=entity, relation=relation)
        if (asked := batch.facts) is not None:
            asked = asked._replace(relations=_index(vector_rows, asked.relations))
        numbered.append(batch._replace(items=one, facts=asked))
    return numbered, torch.from_numpy(memory_rows), torch.from_numpy(vector_rows)


def _distinct(rows: list[torch.Tensor]) -> np.ndarray:
    every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *rows]))
    return every[every >= 0]


def _index(distinct: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """The place of each row among the distinct ones; -1 stays."""
    return torch.from_numpy(np.where(rows.numpy() >= 0, np.searchsorted(distinct, rows.numpy()), -1))


def _token_counts(dataset: Path, info: TokenizerInfo) -> np.ndarray:
    """int64 [V]: occurrences of each token in the corpus."""
    path = dataset / TOKEN_COUNTS
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `trelm prepare` again") from None
    if counts.shape != (info.vocab_size,):
        raise UserError(f"{path}: not of the dataset's tokenizer; run `trelm prepare` again")
    return counts
