"""Items, facts and queries against a loop over one sequence; the same for any packing, ranks and workers."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.training.knowledge_dataset import (
    UNKNOWN_ENTITY,
    about_tokens,
    open_annotator,
    open_masker,
    open_steps,
    prepare_knowledge,
    read,
    settings,
)
from trelm_ds.config import Config
from trelm_ds.corpus import TOKENIZER_FOLDER, load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.importance import load_frequencies
from trelm_ds.importance.store import Identity, save_shard, save_summary, sparse
from trelm_ds.keyed_random import keyed_bits, keyed_uniform
from trelm_ds.knowledge import cosine_histogram
from trelm_ds.shards import Manifest, ShardReader
from trelm_ds.training import annotate as module
from trelm_ds.training.annotate import Annotation
from trelm_ds.training.batch import Batch
from trelm_ds.training.loader import StepBatches, StepDataset, StepLoader

VARIANTS: dict[str, dict[str, Any]] = {
    "trelm": {"cka__max_token_share": 0.6},
    "ask all": {"cka__max_token_share": 100.0},
    "several facts": {"cka__max_token_share": 1.5, "cka__facts_per_mention": 3},
    "always injected": {"injection__probability": 1.0, "cka__max_token_share": 100.0},
    "never injected": {"injection__probability": 0.0, "cka__max_token_share": 100.0},
    "same triple": {"injection__probability": 1.0, "cka__triple": "same", "cka__max_token_share": 100.0},
    "few mentions, short answers": {
        "selection__max_per_sequence": 2,
        "cka__max_answer_tokens": 3,
        "cka__max_token_share": 9.0,
    },
    "own embeddings": {"injection__source": "none", "cka__max_token_share": 1.0},
    "no memory": {"memory__enabled": False, "cka__max_token_share": 100.0},
    "no memory, own embeddings": {"memory__enabled": False, "injection__source": "none", "cka__max_token_share": 9.0},
    "no words": {"memory__words": False, "cka__max_token_share": 0.9},
    "words alone": {"selection__strategy": "none"},
    "product": {"cka__decoder": "product"},
    "dkplm": {
        "cka__decoder": "product",
        "cka__triple": "same",
        "injection__probability": 1.0,
        "memory__enabled": False,
    },
    "no assessing": {"cka__decoder": "none"},
    "nothing": {"selection__strategy": "none", "memory__enabled": False},
}


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="module")
def byte_level(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_knowledge(tmp_path_factory.mktemp("byte_level"), str(shared_data / "tokenizers" / "roberta-base"))


@pytest.fixture(params=["wordpiece", "byte_level"])
def dataset(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


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
    """A query, or for product the span and the relation's row; `injected`: the item and its places in the query."""

    query: tuple[int, ...] | None
    span: tuple[int, int] | None
    relation: int | None
    inverse: bool
    answer: tuple[int, ...]
    answer_places: tuple[int, ...]
    injected: tuple[tuple[int, ...], int] | None


def row(offsets: np.ndarray, tokens: np.ndarray, number: int) -> list[int]:
    return tokens[offsets[number] : offsets[number + 1]].tolist()


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
        questions: list[tuple[float, Fact, int | None]] = []
        mentions = np.column_stack([np.zeros(len(sequence.mentions)), sequence.mentions]).astype(np.int32)
        taken: set[int] = set()
        for number in np.flatnonzero(self.index.selector(mentions)).tolist():
            first, last, qid = sequence.mentions[number].tolist()
            taken |= set(range(first, last))
            questions += self.mention(number, first, last, qid)
        self.add_words(taken)
        order = sorted(range(len(self.found)), key=lambda place: self.found[place][0])
        seen: set[int] = set()
        items = []
        for place in order:
            item = self.found[place][1]
            items.append(item._replace(new_context=item.memory >= 0 and item.memory not in seen))
            seen.add(item.memory)
        total = sum(len(fact.query) for _, fact, _ in questions if fact.query)
        facts = []
        for draw, fact, place in questions:
            if fact.query is None or draw < min(1, self.config.cka.max_token_share * len(self.tokens) / total):
                injected = fact.injected and place is not None and (fact.injected[0], order.index(place))
                facts.append(fact._replace(injected=injected or None))
        return items, facts

    def uniform(self, what: int, *number: int) -> float:
        return float(keyed_uniform(5, what, *self.key, *number))

    def may_apply(self, what: int, number: int, first: int, last: int) -> bool:
        wanted = self.uniform(what, number) < self.config.injection.probability
        return wanted and not any(place in self.predicted for place in range(first, last))

    def item(self, memory: int, first: int, last: int, applied: bool, triple: tuple[int, int, float]) -> Item:
        around = self.config.memory.window
        window = max(1, first - around), min(last + around, len(self.tokens) - 1)
        return Item(memory, window, False, applied, *triple, tuple(range(first, last)) if applied else ())

    def mention(self, number: int, first: int, last: int, qid: int) -> list[tuple[float, Fact, int | None]]:
        config, index, names = self.config, self.index, self.index.names
        graph_row = index.graph.entities.tolist().index(qid)
        key = keyed_bits(5, module._TRIPLE, *self.key, np.array([number]))
        looked = self.annotator._triples.candidates(np.array([graph_row]), key)
        edges = [tuple(a[0, n].tolist() for a in looked[:3]) for n in range(8) if looked.has[0, n]]
        named = [
            edge
            for edge in edges
            if row(names.entity_offsets, names.entity_tokens, edge[0])
            and row(names.relation_offsets, names.relation_tokens, edge[1])
        ]
        applied, injected = self.may_apply(module._APPLY, number, first, last), None
        if config.injection.source == "none":
            applied = applied and config.memory.enabled
        else:
            injected = named[0] if named and applied else None
            applied = injected is not None
        triple = (-1, -1, 0.0)
        if injected is not None:
            vectors = index.vector_entities.tolist()
            triple = vectors.index(injected[0]), len(vectors) + injected[1], 1.0 if injected[2] else -1.0
        place = None
        if config.memory.enabled or applied:
            memory = index.memory_entities.tolist().index(qid) if config.memory.enabled else -1
            self.found.append((first, self.item(memory, first, last, applied, triple)))
            place = len(self.found) - 1
        if config.cka.decoder == "none":
            return []
        questions: list[tuple[float, Fact, int | None]] = []
        asked = 0
        for candidate, edge in enumerate(edges):
            answer = row(names.entity_offsets, names.entity_tokens, edge[0])
            leaks = injected is not None and config.cka.triple == "other" and edge[0] == injected[0]
            sayable = edge in named and len(answer) <= config.cka.max_answer_tokens
            if sayable and not leaks and edge not in edges[:candidate] and asked < config.cka.facts_per_mention:
                asked += 1
                fact = self.fact(first, last, edge, answer, applied)
                if fact.query is None or len(fact.query) <= 64:
                    questions.append((self.uniform(module._KEEP, number, candidate), fact, place))
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
                applied = self.may_apply(module._APPLY_WORD, first, first, last)
                memory = self.words[tuple(word)]
                self.found.append((first, self.item(memory, first, last, applied, (-1, -1, 0.0))))
            word = [] if token in special else [token] if new else [*word, token]


def described(made: Annotation | Batch, base: int = 0) -> tuple[list[Item], list[Fact]]:
    """All items and facts of a batch; places of items count from `cls`."""
    items, facts = [], []
    bounds = made.cu_seqlens.tolist()
    if made.items is not None:
        columns = (column.tolist() for column in made.items[:8])
        tokens = np.column_stack([made.items.token_rows, made.items.token_items])
        n_facts = 0 if made.facts is None or not len(made.facts.positions) else len(made.facts.inverse)
        end = bounds[len(bounds) - 1 - n_facts]  # of the sequences
        for number, (memory, window, cls, new, applied, *triple) in enumerate(zip(*columns, strict=True)):
            own = [token - cls for token, item in tokens.tolist() if item == number and token < end]
            place = window[0] - cls, window[1] - cls
            items.append(Item(memory, place, new, applied, triple[0], triple[1], triple[2] or 0.0, tuple(own)))
    if made.facts is not None:
        facts = [described_fact(made, number) for number in range(len(made.facts.inverse))]
    return items, facts


def described_fact(made: Annotation | Batch, number: int) -> Fact:
    facts = made.facts
    assert facts is not None
    mine = facts.fact == number
    answer, inverse = tuple(facts.labels[mine].tolist()), bool(facts.inverse[number])
    assert facts.place[mine].tolist() == list(range(len(answer)))
    if not len(facts.positions):
        return Fact(None, tuple(facts.spans[number].tolist()), int(facts.relations[number]), inverse, answer, (), None)
    assert facts.spans.shape == (0, 2)
    assert len(facts.relations) == 0
    first, last = made.cu_seqlens.tolist()[len(made.cu_seqlens) - 1 - len(facts.inverse) + number :][:2]
    query = tuple(made.input_ids[first:last].tolist())
    injected = None
    if made.items is not None:
        inside = (made.items.token_rows >= first) & (made.items.token_rows < last)
        if inside.any():
            (item,) = set(made.items.token_items[inside].tolist())
            injected = tuple((made.items.token_rows[inside] - first).tolist()), item
    return Fact(query, None, None, inverse, answer, tuple((facts.positions[mine] - first).tolist()), injected)


def samples(reader: ShardReader) -> np.ndarray:
    """Some of the tiny corpus, and texts of every other kind."""
    return np.concatenate([np.arange(20), np.arange(400, 460)]).clip(max=reader.manifest.n_sequences - 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sequence_has_the_items_and_facts_of_the_definition(dataset: Path, variant: str) -> None:
    literal = Literal(dataset, settings(**VARIANTS[variant]))
    seen: Counter[str] = Counter()
    for epoch in (0, 3):
        for sample in samples(literal.reader).tolist():
            items, facts = literal(epoch, sample)
            sequence = read(literal.reader, literal.masker, np.array([epoch]), np.array([sample]))
            made = literal.annotator(sequence)
            assert described(made) == (items, facts)
            assert made.input_ids[: len(sequence.tokens)].tolist() == sequence.masked.tolist()
            assert made.max_seqlen == int(torch.diff(made.cu_seqlens).max())
            assert made.cu_seqlens[-1] == len(made.input_ids)
            seen.update(made.counts)
            assert made.counts["facts"] == len(facts)
            seen.update(items=len(items), spans=sum(len(item.tokens) for item in items))
            seen.update(inside_queries=sum(fact.injected is not None for fact in facts))
            if made.items is not None:
                assert (torch.diff(made.items.token_rows) > 0).all()
    check_counts(variant, literal.config, seen, made)


def check_counts(variant: str, config: Config, seen: Counter[str], made: Annotation) -> None:
    """That the comparison was not one of nothing with nothing."""
    chooses, asks = config.selection.strategy != "none", config.cka.decoder != "none"
    assert (seen["mentions"] > 100) == chooses
    assert (seen["facts"] > 10) == (chooses and asks)
    assert (seen["query tokens"] > 50) == (chooses and config.cka.decoder == "query")
    assert (seen["words"] > 100) == (config.memory.enabled and config.memory.words)
    injects = config.injection.probability > 0 and (config.injection.source != "none" or config.memory.enabled)
    assert (seen["injected"] > 20) == (chooses and injects)
    assert (seen["inside_queries"] > 0) == (chooses and injects and config.cka.decoder == "query")
    assert (made.facts is None) == (not asks or not chooses)
    assert (made.items is None) == (variant in ("nothing", "no memory, own embeddings"))


def test_a_sequence_has_the_same_knowledge_beside_others(dataset: Path) -> None:
    config = settings(cka__max_token_share=0.6)
    annotator, reader, masker = open_annotator(dataset, config), ShardReader(dataset), open_masker(dataset, config)
    ids = samples(reader)
    epochs = ids % 3
    together_items, together_facts = described(annotator(read(reader, masker, epochs, ids)))
    alone: tuple[list[Item], list[Fact]] = [], []
    for number in range(len(ids)):
        items, facts = described(annotator(read(reader, masker, epochs[[number]], ids[[number]])))
        base = len(alone[0])
        moved = [f._replace(injected=f.injected and (f.injected[0], f.injected[1] + base)) for f in facts]
        alone[0].extend(items)
        alone[1].extend(moved)
    assert together_items == alone[0]
    assert together_facts == alone[1]


def test_a_substitute_is_keyed_by_the_sample_whose_place_it_takes(wordpiece: Path) -> None:
    config = settings()
    annotator, reader, masker = (
        open_annotator(wordpiece, config),
        ShardReader(wordpiece),
        open_masker(wordpiece, config),
    )
    own = read(reader, masker, np.array([0]), np.array([425]))
    other = own._replace(sample_ids=np.array([3]))
    first, second = annotator(own), annotator(other)
    assert first.items is not None
    assert second.items is not None
    assert torch.equal(first.items.window, second.items.window)
    assert not torch.equal(first.items.applied, second.items.applied)


def in_step(read: StepBatches) -> tuple[Counter[Any], Counter[Any]]:
    """What each sequence of a step shows and has, and what is asked, whatever the packing."""
    sequences: Counter[Any] = Counter()
    facts: Counter[Any] = Counter()
    for batch in read.micro_batches:
        assert batch.items is not None
        items, asked = described(batch)
        named = [global_rows(item, read) for item in items]
        for number in range(batch.sequences):
            first, last = batch.cu_seqlens[number : number + 2].tolist()
            own = [item for item, cls in zip(named, batch.items.cls.tolist(), strict=True) if cls == first]
            sequences[tuple(batch.input_ids[first:last].tolist()), tuple(own)] += 1
        for fact in asked:
            facts[fact._replace(injected=fact.injected and (fact.injected[0], named[fact.injected[1]]))] += 1
    return sequences, facts


def global_rows(item: Item, read: StepBatches) -> Item:
    memory, entity, relation = (
        int(rows[place]) if place >= 0 else -1
        for rows, place in (
            (read.memory_rows, item.memory),
            (read.vector_rows, item.entity),
            (read.vector_rows, item.relation),
        )
    )
    return item._replace(memory=memory, entity=entity, relation=relation)


def steps_of(dataset: StepDataset, workers: int, steps: int = 3) -> list[StepBatches]:
    loader = StepLoader(dataset, 0, steps, workers)
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def test_steps_are_the_same_for_any_number_of_ranks_and_workers(wordpiece: Path) -> None:
    config = settings(cka__max_token_share=0.6)
    annotator = open_annotator(wordpiece, config)
    expected = [in_step(step) for step in steps_of(open_steps(wordpiece, config, annotator), 0)]
    assert all(sum(facts.values()) > 10 for _, facts in expected)
    alone = steps_of(open_steps(wordpiece, config, annotator), 1)
    assert [in_step(step) for step in alone] == expected
    for world_size, workers in ((2, 0), (2, 1), (4, 0)):
        ranks = [
            steps_of(open_steps(wordpiece, config, annotator, rank, world_size), workers) for rank in range(world_size)
        ]
        for number, (sequences, facts) in enumerate(expected):
            parts = [in_step(rank[number]) for rank in ranks]
            assert sum((part[0] for part in parts), Counter()) == sequences
            assert sum((part[1] for part in parts), Counter()) == facts
            for rank in ranks:
                assert torch.equal(rank[number].negatives, alone[number].negatives)
            assert sum((Counter(rank[number].counts) for rank in ranks), Counter()) == Counter(alone[number].counts)


def test_a_step_names_the_rows_it_needs_once(wordpiece: Path) -> None:
    for variant in ("trelm", "product"):
        config = settings(**VARIANTS[variant])
        step = steps_of(open_steps(wordpiece, config, open_annotator(wordpiece, config)), 0, 1)[0]
        assert len(step.micro_batches) > 2
        items = [batch.items for batch in step.micro_batches if batch.items is not None]
        facts = [batch.facts for batch in step.micro_batches if batch.facts is not None]
        vectors = [rows for item in items for rows in (item.entity, item.relation)] + [f.relations for f in facts]
        for rows, used in ((step.memory_rows, [item.memory for item in items]), (step.vector_rows, vectors)):
            assert (torch.diff(rows) > 0).all()
            places = torch.unique(torch.cat(used))
            assert places[places >= 0].tolist() == list(range(len(rows)))


def test_without_an_annotator_nothing_changes(wordpiece: Path) -> None:
    config = settings(**VARIANTS["nothing"])
    plain = steps_of(open_steps(wordpiece, config, None), 0)
    annotated = steps_of(open_steps(wordpiece, config, open_annotator(wordpiece, config)), 0)
    for one, other in zip(plain, annotated, strict=True):
        assert [len(rows) for rows in one[3:6]] == [0, 0, 0]
        assert one.counts == {}
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
            assert a.items is a.facts is b.items is b.facts is None


def test_queries_cost_the_share_of_tokens_that_they_may(wordpiece: Path) -> None:
    found = {}
    for share in (0.0, 0.3, 0.6):
        config = settings(cka__max_token_share=share, injection__probability=0.0, masking__probability=0.01)
        annotator, reader, masker = (
            open_annotator(wordpiece, config),
            ShardReader(wordpiece),
            open_masker(wordpiece, config),
        )
        asked = tokens = 0
        for epoch in range(20):
            # Sequences with so many mentions that they could ask for more than that.
            ids = np.arange(405, reader.manifest.n_sequences, 6)
            counted = annotator(read(reader, masker, np.full(len(ids), epoch), ids))
            asked += counted.counts["query tokens"]
            tokens += len(counted.input_ids) - counted.counts["query tokens"]
        found[share] = asked / tokens
    assert found[0.0] == 0
    for share in (0.3, 0.6):
        assert abs(found[share] / share - 1) < 0.05, found


def test_the_budget_leaves_room_for_the_queries(wordpiece: Path) -> None:
    config = settings(cka__max_token_share=0.5)
    annotator = open_annotator(wordpiece, config)
    for step in steps_of(open_steps(wordpiece, config, annotator, budget=300), 0):
        for batch in step.micro_batches:
            assert batch.cu_seqlens[batch.sequences] <= 200
    longest = ShardReader(wordpiece).manifest.max_length
    assert open_steps(wordpiece, config, annotator, budget=longest * 3 // 2)
    with pytest.raises(
        UserError, match=r"micro_batch_tokens: 95 without 0.5 times as many for queries .cka.max_token_sh"
    ):
        open_steps(wordpiece, config, annotator, budget=longest * 3 // 2 - 1)
    assert open_steps(wordpiece, config, None, budget=longest)


def test_negatives_follow_their_distribution_and_are_never_special(dataset: Path) -> None:
    annotator = open_annotator(dataset, settings(cka__negatives=50_000))
    expected = annotator.negative_probabilities()
    assert expected.dtype == np.float32
    assert abs(expected.sum() - 1) < 1e-5
    drawn = annotator.negatives(3)
    special = list(open_masker(dataset, settings()).info.special_ids)
    assert not np.isin(drawn, special).any()
    assert not expected[special].any()
    share = np.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert abs(share - expected).max() < 0.01
    assert not np.array_equal(drawn, annotator.negatives(4))
    np.testing.assert_array_equal(drawn, annotator.negatives(3))
    counts = np.load(dataset / "token_counts.npy").astype(float) ** 0.75
    counts[special] = 0
    np.testing.assert_allclose(expected, counts / counts.sum(), rtol=1e-5)
    assert len(open_annotator(dataset, settings(cka__decoder="none")).negatives(0)) == 0
    assert len(open_annotator(dataset, settings(cka__negatives=0)).negatives(0)) == 0


def test_the_index_holds_what_the_settings_need(dataset: Path) -> None:
    index = open_annotator(dataset, settings()).index
    graph = index.graph
    assert UNKNOWN_ENTITY not in index.memory_entities
    assert index.memory_entities.tolist() == list(range(1, 53))  # people and cities; countries are never mentioned
    others = {200 + n for n in range(4)} | set(graph.entities[graph.out_entities].tolist()) | set(range(1, 53))
    reachable = {e for e in others if graph.degrees(np.array([e]))[0]}
    assert set(graph.entities[index.vector_entities].tolist()) == reachable
    assert index.n_vectors == len(index.vector_entities) + len(graph.relations)
    offsets, tokens = index.memory_tokens()
    assert len(offsets) == index.n_memory + 1
    tokenizer = load_tokenizer(dataset / TOKENIZER_FOLDER)
    assert tokenizer.encode(" inverse of", add_special_tokens=False) == about_tokens(dataset)[2].tolist()
    assert tokenizer.decode(row(offsets, tokens, 44)).strip().lower() == "city04"
    assert sum(index.describe().values()) == index.n_memory + index.n_vectors
    sizes = {
        name: (len(found.memory_entities), len(found.memory_words) > 0, len(found.vector_entities), found.n_relations)
        for name, changes in VARIANTS.items()
        for found in [open_annotator(dataset, settings(**changes)).index]
    }
    entities, vectors = 52, len(index.vector_entities)
    assert sizes["trelm"] == (entities, True, vectors, 3)
    assert sizes["own embeddings"] == (entities, True, 0, 0)
    assert sizes["no memory"] == sizes["dkplm"] == (0, False, vectors, 3)
    assert sizes["words alone"] == (0, True, 0, 0)
    assert sizes["nothing"] == (0, False, 0, 0)
    relations_alone = settings(injection__source="none", cka__decoder="product")
    assert open_annotator(dataset, relations_alone).index.n_vectors == 3


def score(dataset: Path, seed: int = 0) -> None:
    """Drawn scores of every mention, one in ten not scored."""
    manifest, draw = Manifest.load(dataset), np.random.default_rng(seed)
    reader = ShardReader(dataset)
    mentions = [reader.load(block).mentions for block in range(len(reader.block_sizes))]
    cosines = [draw.random(len(found)).astype(np.float16) for found in mentions]
    for scores in cosines:
        scores[draw.random(len(scores)) < 0.1] = np.nan
    identity = Identity(manifest.fingerprint, "", {}, "all", load_frequencies(dataset).mean)
    assert len(manifest.shards) == 1
    every = np.concatenate(cosines)
    about = {
        "identity": dataclasses.asdict(identity),
        "counts": {},
        "block_mentions": [len(found) for found in mentions],
        "histogram": sparse(cosine_histogram(every)),
    }
    (dataset / "importance").mkdir()
    save_shard(dataset / "importance", manifest.shards[0].name, every, about)
    assert save_summary(dataset / "importance", manifest, identity)


def test_importance_is_used_where_it_is_asked_for(wordpiece: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"selection.importance: required, but .* no complete scores; run `trelm impor"):
        open_annotator(wordpiece, settings(selection__importance="required"))
    plain = open_annotator(wordpiece, settings(selection__importance="auto"))
    assert plain.index.scores is None
    dataset = tmp_path / "dataset"
    shutil.copytree(wordpiece, dataset)
    score(dataset)
    masker, reader = open_masker(dataset, settings()), ShardReader(dataset)
    assert open_annotator(dataset, settings(selection__importance="none")).index.scores is None
    for importance in ("auto", "required"):
        annotator = pickle.loads(pickle.dumps(open_annotator(dataset, settings(selection__importance=importance))))
        scores, selector = annotator.index.scores, annotator.index.selector
        assert selector.bar is not None
        ids = np.random.default_rng(1).permutation(reader.manifest.n_sequences)[:200]
        expected = []
        for number, sample in enumerate(ids.tolist()):
            block = int(reader.blocks_of(np.array(sample)))
            mentions = reader.load(block).mentions
            chosen = mentions[selector(mentions, scores.block(block))]
            own = chosen[chosen[:, 0] == sample - int(reader.block_sizes[:block].sum())]
            expected += [(number, first) for first in own[:, 1].tolist()]
        spans, _ = annotator._chosen(read(reader, masker, np.zeros_like(ids), ids))
        starts = np.cumsum(reader.lengths[ids]) - reader.lengths[ids]
        assert list(zip(spans.owner.tolist(), (spans.first - starts[spans.owner]).tolist(), strict=True)) == expected
        assert 50 < len(expected) < len(plain._chosen(read(reader, masker, np.zeros_like(ids), ids))[0].first)


def test_it_travels_without_its_arrays(wordpiece: Path) -> None:
    annotator = open_annotator(wordpiece, settings())
    data = pickle.dumps(annotator)
    assert len(data) < 10_000
    again = pickle.loads(data)
    reader, masker = ShardReader(wordpiece), open_masker(wordpiece, settings())
    some = read(reader, masker, np.zeros(10, dtype=np.int64), np.arange(420, 430))
    assert described(again(some)) == described(annotator(some))
