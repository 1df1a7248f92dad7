"""Items and facts of a sequence by their definition, mention by mention, and a batch's in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.batches.knowledge_dataset import (
    about_tokens,
    open_annotator,
    open_masker,
)
from trelm_ds.config import Config
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_uniform
from trelm_ds.model import AssessingBatch, Batch
from trelm_ds.shards import ShardReader


class Item(NamedTuple):
    """Places count from the sequence's first token; rows are those of the whole bank and vector table."""

    memory: int
    window: tuple[int, int]
    new_context: bool
    applied: bool
    entity: int
    relation: int
    sign: float
    tokens: tuple[int, ...]  # places that follow Eq. 7


class Fact(NamedTuple):
    """A query, or for product the span and for others the relation's row.

    `injected`: the item and its places in the query.
    """

    query: tuple[int, ...] | None
    span: tuple[int, int] | None
    relation: int | None
    inverse: bool
    answer: tuple[int, ...]
    answer_places: tuple[int, ...]
    injected: tuple[tuple[int, ...], int] | None


def row(offsets: np.ndarray, tokens: np.ndarray, number: int) -> list[int]:
    return tokens[offsets[number] : offsets[number + 1]].tolist()


class Question(NamedTuple):
    """A fact that may be asked, what decides whether it is, the place of its item, and the entity that answers it."""

    draw: float
    fact: Fact
    place: int | None
    other: int


class Literal:
    """The definition, mention by mention, for one sequence at a time."""

    def __init__(self, dataset: Path, config: Config) -> None:
        self.config, self.annotator = config, open_annotator(dataset, config)
        self.index, self.reader, self.masker = self.annotator.index, ShardReader(dataset), open_masker(dataset, config)
        self.info, _, self.marker = about_tokens(dataset)
        offsets, tokens = self.index.memory_tokens()
        entities = len(self.index.memory_entities)
        self.words = {tuple(row(offsets, tokens, n)): n for n in range(entities, self.index.n_memory)}

    def __call__(self, epoch: int, sample: int) -> tuple[list[Item], list[Fact]]:
        sequence = self.reader.sequence(sample)
        self.tokens, self.key = sequence.tokens.astype(np.int64).tolist(), (epoch, sample)
        arrays = np.array(self.tokens), np.array([len(self.tokens)]), np.array([epoch]), np.array([sample])
        self.predicted = set(self.masker(*arrays)[1].tolist())
        self.found: list[tuple[int, Item]] = []  # (first token, item)
        questions: list[Question] = []
        mentions = np.column_stack([np.zeros(len(sequence.mentions)), sequence.mentions]).astype(np.int32)
        rows = self.index.graph.entities.tolist()
        self.masked = {  # entities that the model has to predict, by row of the graph
            rows.index(qid)
            for first, last, qid in sequence.mentions.tolist()
            if qid in rows and self.predicted & set(range(first, last))
        }
        taken: set[int] = set()
        chosen = set(np.flatnonzero(self.index.selector(mentions)).tolist())
        known = set(self.index.graph.entities.tolist()) if self.config.cka.mentions == "all" else set()
        for number, (first, last, qid) in enumerate(sequence.mentions.tolist()):
            if number in chosen:
                taken |= set(range(first, last))
            if number in chosen or qid in known:
                questions += self.mention(number, first, last, qid, number in chosen)
        self.add_words(taken)
        order = sorted(range(len(self.found)), key=lambda place: self.found[place][0])
        seen: set[int] = set()
        items = []
        for place in order:
            item = self.found[place][1]
            items.append(item._replace(new_context=item.memory >= 0 and item.memory not in seen))
            seen.add(item.memory)
        if self.config.cka.decoder == "product" and self.config.cka.triple == "other":
            vectors = self.index.vector_entities.tolist()  # the mention's state sees the whole sequence
            shown = {vectors[item.entity] for _, item in self.found if item.entity >= 0}
            questions = [question for question in questions if question.other not in shown]
        total = sum(len(one.fact.query) for one in questions if one.fact.query)
        facts = []
        for draw, fact, place, _ in questions:
            if fact.query is None or draw < min(1, self.config.cka.max_token_share * len(self.tokens) / total):
                injected = fact.injected and place is not None and (fact.injected[0], order.index(place))
                facts.append(fact._replace(injected=injected or None))
        return self.in_places(items, facts)

    def in_places(self, items: list[Item], facts: list[Fact]) -> tuple[list[Item], list[Fact]]:
        """Take h_e out of the text, or out of the queries."""
        if self.config.injection.places == "text":
            facts = [fact._replace(injected=None) for fact in facts]
        if self.config.injection.places == "queries":
            inside = {fact.injected[1] for fact in facts if fact.injected is not None}
            items = [
                item if item.entity < 0 else item._replace(applied=number in inside, tokens=())
                for number, item in enumerate(items)
            ]
        return items, facts

    def uniform(self, stream: Stream, *number: int) -> float:
        return float(keyed_uniform(5, stream, *self.key, *number))

    def may_apply(self, stream: Stream, number: int, first: int, last: int) -> bool:
        wanted = self.uniform(stream, number) < self.config.injection.probability
        return wanted and not any(place in self.predicted for place in range(first, last))

    def item(self, memory: int, first: int, last: int, applied: bool, triple: tuple[int, int, float]) -> Item:
        around = self.config.memory.window
        window = max(1, first - around), min(last + around, len(self.tokens) - 1)
        return Item(memory, window, False, applied, *triple, tuple(range(first, last)) if applied else ())

    def mention(self, number: int, first: int, last: int, qid: int, chosen: bool) -> list[Question]:
        config, index, names = self.config, self.index, self.index.names
        graph_row = index.graph.entities.tolist().index(qid)
        key = keyed_bits(5, Stream.TRIPLE, *self.key, np.array([number]))
        looked = self.annotator._triples.candidates(np.array([graph_row]), key)
        edges = [tuple(a[0, n].tolist() for a in looked[:3]) for n in range(8) if looked.has[0, n]]
        named = [
            edge
            for edge in edges
            if row(names.entity_offsets, names.entity_tokens, edge[0])
            and row(names.relation_offsets, names.relation_tokens, edge[1])
        ]
        applied, injected = chosen and self.may_apply(Stream.INJECTED_MENTION, number, first, last), None
        if config.injection.source == "none":
            applied = applied and config.memory.enabled
        else:
            open_ = [edge for edge in named if edge[0] not in self.masked]
            injected = open_[0] if open_ and applied else None
            applied = injected is not None
        triple = (-1, -1, 0.0)
        if injected is not None:
            vectors = index.vector_entities.tolist()
            triple = vectors.index(injected[0]), len(vectors) + injected[1], 1.0 if injected[2] else -1.0
        place = None
        if chosen and (config.memory.enabled or applied):
            memory = index.memory_entities.tolist().index(qid) if config.memory.enabled else -1
            self.found.append((first, self.item(memory, first, last, applied, triple)))
            place = len(self.found) - 1
        if config.cka.decoder == "none":
            return []
        if config.cka.decoder == "mention":
            if injected is None:
                return []
            of_it = len(index.vector_entities) + injected[1]
            tokens, places = tuple(self.tokens[first:last]), tuple(range(first, last))
            return [Question(0.0, Fact(None, None, of_it, bool(injected[2]), tokens, places, None), place, injected[0])]
        questions: list[Question] = []
        asked = 0
        for candidate, edge in enumerate(edges):
            answer = row(names.entity_offsets, names.entity_tokens, edge[0])
            leaks = injected is not None and config.cka.triple == "other" and edge[0] == injected[0]
            sayable = edge in named and len(answer) <= config.cka.max_answer_tokens
            if sayable and not leaks and edge not in edges[:candidate] and asked < config.cka.facts_per_mention:
                asked += 1
                fact = self.fact(first, last, edge, answer, applied)
                if fact.query is None or len(fact.query) <= 64:
                    questions.append(Question(self.uniform(Stream.KEPT_FACT, number, candidate), fact, place, edge[0]))
        return questions

    def fact(self, first: int, last: int, edge: tuple[int, ...], answer: list[int], applied: bool) -> Fact:
        names, info = self.index.names, self.info
        _, relation, inverse = edge
        if self.config.cka.decoder == "product":
            relation_row = len(self.index.vector_entities) + relation
            return Fact(None, (first, last), relation_row, bool(inverse), tuple(answer), (), None)
        marker = self.marker.tolist() if inverse else []
        label = row(names.relation_offsets, names.relation_tokens, relation)
        shown = [info.cls, *self.tokens[first:last], *marker, *label]
        query = (*shown, *[info.mask] * len(answer), info.sep)
        places = tuple(range(len(shown), len(shown) + len(answer)))
        injected = (tuple(range(1, 1 + last - first)), -1) if applied else None
        return Fact(query, None, None, bool(inverse), tuple(answer), places, injected)

    def add_words(self, taken: set[int]) -> None:
        special, begins = set(self.info.special_ids), self.masker.word_starts
        word: list[int] = []
        for place, token in enumerate([*self.tokens, self.info.sep]):
            new = token in special or begins[token] or self.tokens[place - 1] in special
            first, last = place - len(word), place
            if new and tuple(word) in self.words and taken.isdisjoint(range(first, last)):
                applied = self.may_apply(Stream.INJECTED_WORD, first, first, last)
                memory = self.words[tuple(word)]
                self.found.append((first, self.item(memory, first, last, applied, (-1, -1, 0.0))))
            word = [] if token in special else [token] if new else [*word, token]


def facts_of(made: Batch) -> AssessingBatch | None:
    """What is asked; None where the run asks nothing."""
    return made.objectives.get("cka")


def described(made: Batch) -> tuple[list[Item], list[Fact]]:
    """All items and facts of a batch; places of items count from `cls`."""
    items, facts, asked = [], [], facts_of(made)
    bounds = made.cu_seqlens.tolist()
    if made.items is not None:
        columns = (column.tolist() for column in made.items[:7])
        tokens = np.column_stack([made.items.token_rows, made.items.token_items])
        n_facts = 0 if asked is None or len(asked.relations) or not len(asked.positions) else len(asked.inverse)
        end = bounds[len(bounds) - 1 - n_facts]  # of the sequences
        assert end == bounds[made.n_sequences]
        for number, (memory, window, cls, new, *triple) in enumerate(zip(*columns, strict=True)):
            own = [token - cls for token, item in tokens.tolist() if item == number and token < end]
            applied = number in made.items.token_items.tolist()
            place = window[0] - cls, window[1] - cls
            items.append(Item(memory, place, new, applied, triple[0], triple[1], triple[2] or 0.0, tuple(own)))
    if asked is not None:
        facts = [described_fact(made, asked, number) for number in range(len(asked.inverse))]
    return items, facts


def described_fact(made: Batch, facts: AssessingBatch, number: int) -> Fact:
    mine = facts.fact == number
    answer, inverse = tuple(facts.labels[mine].tolist()), bool(facts.inverse[number])
    assert facts.place[mine].tolist() == list(range(len(answer)))
    if not len(facts.positions):
        return Fact(None, tuple(facts.spans[number].tolist()), int(facts.relations[number]), inverse, answer, (), None)
    assert facts.spans.shape == (0, 2)
    if len(facts.relations):  # decoder mention
        assert not facts.routed.any()
        return Fact(
            None, None, int(facts.relations[number]), inverse, answer, tuple(facts.positions[mine].tolist()), None
        )
    first, last = made.cu_seqlens.tolist()[len(made.cu_seqlens) - 1 - len(facts.inverse) + number :][:2]
    query = tuple(made.input_ids[first:last].tolist())
    injected = None
    if made.items is not None:
        inside = (made.items.token_rows >= first) & (made.items.token_rows < last)
        if inside.any():
            (item,) = set(made.items.token_items[inside].tolist())
            injected = tuple((made.items.token_rows[inside] - first).tolist()), item
    return Fact(query, None, None, inverse, answer, tuple((facts.positions[mine] - first).tolist()), injected)
