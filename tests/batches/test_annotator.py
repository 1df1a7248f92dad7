"""Items, facts and queries against a loop over one sequence; the same for any packing, ranks and workers."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches.knowledge_dataset import (
    VARIANTS,
    open_annotator,
    open_masker,
    open_steps,
    read,
    settings,
)
from tests.batches.literal_knowledge import Fact, Item, Literal, described, facts_of
from trelm_ds.batches import Step, StepDataset, StepLoader
from trelm_ds.batches.collator import collate
from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.model import Batch
from trelm_ds.shards import ShardReader


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
            made, counts = collate(sequence, [literal.annotator])
            assert described(made) == (items, facts)
            assert made.input_ids[: len(sequence.tokens)].tolist() == sequence.input_ids.tolist()
            assert made.max_seqlen == int(torch.diff(made.cu_seqlens).max())
            assert made.cu_seqlens[-1] == len(made.input_ids)
            seen.update(counts)
            assert counts["facts"] == len(facts)
            seen.update(items=len(items), spans=sum(len(item.tokens) for item in items))
            seen.update(inside_queries=sum(fact.injected is not None for fact in facts))
            if made.items is not None:
                assert (torch.diff(made.items.token_rows) > 0).all()
    check_counts(variant, literal.config, seen, made)


def check_counts(variant: str, config: Config, seen: Counter[str], made: Batch) -> None:
    """That the comparison was not one of nothing with nothing."""
    chooses, asks = config.selection.strategy != "none", config.cka.decoder != "none"
    assert (seen["mentions"] > 100) == chooses
    assert (seen["facts"] > 10) == (chooses and asks)
    assert (seen["query tokens"] > 50) == (chooses and config.cka.decoder == "query")
    assert (seen["words"] > 100) == (config.memory.enabled and config.memory.words)
    injects = config.injection.probability > 0 and (config.injection.source != "none" or config.memory.enabled)
    assert (seen["injected"] > 20) == (chooses and injects)
    in_queries = config.cka.decoder == "query" and config.injection.places != "text"
    assert (seen["inside_queries"] > 0) == (chooses and injects and in_queries)
    assert (facts_of(made) is None) == (not asks or not chooses)
    assert (made.items is None) == (variant in ("nothing", "no memory, own embeddings"))


def test_a_sequence_has_the_same_knowledge_beside_others(dataset: Path) -> None:
    config = settings(cka__max_token_share=0.6)
    annotator, reader, masker = open_annotator(dataset, config), ShardReader(dataset), open_masker(dataset, config)
    ids = samples(reader)
    epochs = ids % 3
    together_items, together_facts = described(collate(read(reader, masker, epochs, ids), [annotator])[0])
    alone: tuple[list[Item], list[Fact]] = [], []
    for number in range(len(ids)):
        one = read(reader, masker, epochs[[number]], ids[[number]])
        items, facts = described(collate(one, [annotator])[0])
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
    first, second = (collate(sequences, [annotator])[0] for sequences in (own, other))
    assert first.items is not None
    assert second.items is not None
    assert torch.equal(first.items.window, second.items.window)
    assert set(first.items.token_items.tolist()) != set(second.items.token_items.tolist())  # which follow Eq. 7


def in_step(read: Step) -> tuple[Counter[Any], Counter[Any]]:
    """What each sequence of a step shows and has, and what is asked, whatever the packing."""
    sequences: Counter[Any] = Counter()
    facts: Counter[Any] = Counter()
    for batch in read.micro_batches:
        assert batch.items is not None
        items, asked = described(batch)
        named = [global_rows(item, read) for item in items]
        for number in range(batch.n_sequences):
            first, last = batch.cu_seqlens[number : number + 2].tolist()
            own = [item for item, cls in zip(named, batch.items.cls.tolist(), strict=True) if cls == first]
            sequences[tuple(batch.input_ids[first:last].tolist()), tuple(own)] += 1
        for fact in asked:
            facts[fact._replace(injected=fact.injected and (fact.injected[0], named[fact.injected[1]]))] += 1
    return sequences, facts


def global_rows(item: Item, read: Step) -> Item:
    memory, entity, relation = (
        int(rows[place]) if place >= 0 else -1
        for rows, place in (
            (read.memory_rows, item.memory),
            (read.vector_rows, item.entity),
            (read.vector_rows, item.relation),
        )
    )
    return item._replace(memory=memory, entity=entity, relation=relation)


def steps_of(dataset: StepDataset, workers: int, steps: int = 3) -> list[Step]:
    loader = StepLoader(dataset, 0, steps, workers)
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


@pytest.mark.usefixtures("warm_workers")
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
        facts = [asked for batch in step.micro_batches if (asked := facts_of(batch)) is not None]
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
        assert [len(rows) for rows in (one.memory_rows, one.vector_rows, one.negatives)] == [0, 0, 0]
        assert one.counts == {"corrupted": 0}
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
            assert a.items is b.items is None
            assert a.objectives == b.objectives == {}


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
            made, counts = collate(read(reader, masker, np.full(len(ids), epoch), ids), [annotator])
            asked += counts["query tokens"]
            tokens += len(made.input_ids) - counts["query tokens"]
        found[share] = asked / tokens
    assert found[0.0] == 0
    for share in (0.3, 0.6):
        assert abs(found[share] / share - 1) < 0.05, found


def test_the_budget_leaves_room_for_the_queries(wordpiece: Path) -> None:
    config = settings(cka__max_token_share=0.5)
    annotator = open_annotator(wordpiece, config)
    for step in steps_of(open_steps(wordpiece, config, annotator, budget=300), 0):
        for batch in step.micro_batches:
            assert batch.cu_seqlens[batch.n_sequences] <= 200
    longest = ShardReader(wordpiece).manifest.max_length
    assert open_steps(wordpiece, config, annotator, budget=longest * 3 // 2)
    with pytest.raises(
        UserError, match=r"micro_batch_tokens: 95 without 0.5 times as many beside the text .cka.max_token_sh"
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


def test_it_travels_without_its_arrays(wordpiece: Path) -> None:
    annotator = open_annotator(wordpiece, settings())
    data = pickle.dumps(annotator)
    assert len(data) < 10_000
    again = pickle.loads(data)
    reader, masker = ShardReader(wordpiece), open_masker(wordpiece, settings())
    some = read(reader, masker, np.zeros(10, dtype=np.int64), np.arange(420, 430))
    assert described(collate(some, [again])[0]) == described(collate(some, [annotator])[0])
