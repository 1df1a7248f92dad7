"""The facts that attribution looks at: a keyed sample of the sequences, with only the documents they stand in."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches.knowledge_dataset import open_annotator, open_masker, open_steps, read, settings
from trelm_ds.batches.collator import collate
from trelm_ds.model import AssessingBatch, Batch
from trelm_ds.routing import routed_facts
from trelm_ds.shards import ShardReader

QUERY: dict[str, Any] = {"cka__max_token_share": 2.0, "routing__enabled": True, "routing__sample_fraction": 0.4}
PRODUCT: dict[str, Any] = QUERY | {"cka__decoder": "product"}


def documents_of(batch: Batch) -> list[list[int]]:
    bounds = batch.cu_seqlens.tolist()
    return [batch.input_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def asked(batch: Batch) -> AssessingBatch:
    found: AssessingBatch = batch.objectives["cka"]
    return found


def facts_of(batch: Batch, only_routed: bool) -> Counter[Any]:
    """Every fact: its document, what it asks, where, and which of the document's rows follow which item."""
    facts, items, bounds = asked(batch), batch.items, batch.cu_seqlens.tolist()
    assert items is not None
    found: Counter[Any] = Counter()
    for number in range(len(facts.inverse)):
        if only_routed and not facts.routed[number]:
            continue
        mine = facts.fact == number
        spans, positions = facts.spans.tolist(), facts.positions
        rows = list(range(*spans[number])) if spans else positions[mine].tolist()
        document = next(d for d in range(len(bounds) - 1) if bounds[d] <= rows[0] < bounds[d + 1])
        first, last = bounds[document : document + 2]
        injected = [
            (row - first, item)
            for row, item in zip(items.token_rows.tolist(), items.token_items.tolist(), strict=True)
            if first <= row < last
        ]
        relation = facts.relations[number].item() if len(facts.relations) else None
        about = facts.labels[mine].tolist(), facts.place[mine].tolist(), relation, facts.inverse[number].item()
        found[repr((batch.input_ids[first:last].tolist(), [row - first for row in rows], about, injected))] += 1
    return found


@pytest.mark.parametrize("variant", [QUERY, PRODUCT], ids=["query", "product"])
def test_the_part_holds_the_same_facts(wordpiece: Path, variant: dict[str, Any]) -> None:
    config = settings(**variant)
    steps = open_steps(wordpiece, config, open_annotator(wordpiece, config))
    seen = 0
    for step in range(3):
        made = steps[step]
        assert not isinstance(made, Exception)
        for batch in made.micro_batches:
            part = routed_facts(batch)
            expected = facts_of(batch, only_routed=True)
            if part is None:
                assert not expected
                continue
            assert facts_of(part, only_routed=False) == expected
            assert asked(part).routed.all()
            assert len(documents_of(part)) == len(asked(part).inverse)  # one fact each
            assert part.max_seqlen == max(map(len, documents_of(part)))
            assert part.targets["mlm"] == len(part.mlm_positions) == 0
            every = Counter(map(tuple, documents_of(batch)))
            assert Counter(map(tuple, documents_of(part))) <= every
            seen += len(asked(part).inverse)
    assert seen > 8


@pytest.mark.parametrize("variant", [QUERY, PRODUCT], ids=["query", "product"])
def test_whole_sequences_are_drawn_alike_wherever_they_stand(wordpiece: Path, variant: dict[str, Any]) -> None:
    config = settings(**variant)
    annotator, reader, masker = (
        open_annotator(wordpiece, config),
        ShardReader(wordpiece),
        open_masker(wordpiece, config),
    )
    ids = np.arange(380, 460)
    drawn = asking = 0

    def routed_of(epochs: np.ndarray, ids: np.ndarray) -> list[bool]:
        batch, _ = collate(read(reader, masker, epochs, ids), [annotator])
        found: list[bool] = asked(batch).routed.tolist()
        return found

    for epoch in (0, 1):
        epochs = np.full(len(ids), epoch)
        alone = []
        for number in range(len(ids)):
            routed = routed_of(epochs[[number]], ids[[number]])
            assert sum(routed) in ((0, len(routed)) if variant is QUERY else (0, 1))
            alone += routed
            drawn += any(routed)
            asking += bool(routed)
        assert routed_of(epochs, ids) == alone
    assert 0.2 * asking < drawn < 0.6 * asking


def test_nothing_is_drawn_without_routing(wordpiece: Path) -> None:
    config = settings(**QUERY | {"routing__enabled": False})
    steps = open_steps(wordpiece, config, open_annotator(wordpiece, config))
    made = steps[0]
    assert not isinstance(made, Exception)
    for batch in made.micro_batches:
        assert not asked(batch).routed.any()
        assert routed_facts(batch) is None
    assert routed_facts(made.micro_batches[0]._replace(objectives={})) is None


def test_every_sequence_is_drawn_where_all_are_asked_for(wordpiece: Path) -> None:
    config = settings(**QUERY | {"routing__sample_fraction": 1.0})
    steps = open_steps(wordpiece, config, open_annotator(wordpiece, config))
    made = steps[0]
    assert not isinstance(made, Exception)
    assert all(torch.all(asked(batch).routed) for batch in made.micro_batches)
