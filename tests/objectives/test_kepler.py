"""KEPLER's objective: its loss against the paper's equations term by term, its draws, and real runs."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches.knowledge_dataset import about_tokens, open_masker, read, settings
from trelm_ds.batches import Sequences
from trelm_ds.batches.collator import collate
from trelm_ds.config import KeplerConfig
from trelm_ds.corpus import GRAPH_FOLDER, NAMES_FOLDER
from trelm_ds.knowledge import KnowledgeGraph, Names
from trelm_ds.model import Batch
from trelm_ds.objectives.kepler import KeplerBatch, KnowledgeEmbeddingLoss, TripleCollator
from trelm_ds.shards import ShardReader

SETTINGS = KeplerConfig(weight=1.0, negatives=2, triples_per_sequence=1.5, max_text_tokens=6)
IDS = np.arange(380, 440)


def collator(dataset: Path, **changes: Any) -> TripleCollator:
    return TripleCollator(dataset, replace(SETTINGS, **changes), 5, about_tokens(dataset)[0], 64)


def sequences(dataset: Path, ids: np.ndarray = IDS) -> Sequences:
    return read(ShardReader(dataset), open_masker(dataset, settings()), ids % 3, ids)


def given(batch: Batch) -> KeplerBatch:
    found: KeplerBatch = batch.objectives["kepler"]
    return found


def triples(batch: Batch) -> list[Any]:
    """Every triple with its corrupted ones, entities as the tokens of their documents."""
    bounds = batch.cu_seqlens.tolist()
    documents = {a: tuple(batch.input_ids[a:b].tolist()) for a, b in itertools.pairwise(bounds)}
    entities = [documents[row] for row in given(batch).entity_rows.tolist()]
    assert len(set(entities)) <= len(entities) == len(set(given(batch).entity_rows.tolist()))
    return [
        ([entities[h] for h in heads], relation, [entities[t] for t in tails])
        for heads, relation, tails in zip(
            given(batch).heads.tolist(), given(batch).relations.tolist(), given(batch).tails.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("norm", [1, 2])
def test_the_loss_is_the_paper_s(norm: int) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(30, 8, generator=draw)
    loss = KnowledgeEmbeddingLoss(n_relations=4, size=8, margin=6.0, norm=norm)
    rows = torch.tensor([3, 9, 11, 20, 29])
    heads, tails = torch.tensor([[0, 3, 0], [2, 4, 2]]), torch.tensor([[1, 1, 4], [0, 0, 3]])
    batch = KeplerBatch(entity_rows=rows, heads=heads, tails=tails, relations=torch.tensor([2, 0]))
    total, right = 0.0, 0
    for number in range(2):
        relation = loss.relations.weight[batch.relations[number]].tolist()
        distances = []
        for h, t in zip(heads[number].tolist(), tails[number].tolist(), strict=True):
            parts = zip(hidden[rows[h]].tolist(), relation, hidden[rows[t]].tolist(), strict=True)
            distances.append(sum(abs(a + r - b) ** norm for a, r, b in parts) ** (1 / norm))
        true, *false = distances
        total += math.log(1 + math.exp(true - 6.0))
        total += sum(math.log(1 + math.exp(6.0 - one)) for one in false) / len(false)
        right += true < min(false)
    found, correct = loss(hidden, batch, None, None)
    assert found.item() == pytest.approx(total, rel=1e-5)
    assert int(correct) == right


def test_no_triple_gives_zero_loss_and_zero_gradients() -> None:
    """Other ranks may have triples where this one has none."""
    loss, hidden = KnowledgeEmbeddingLoss(4, 8, 4.0, 1), torch.randn(5, 8, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    batch = KeplerBatch(entity_rows=none, heads=none.view(0, 3), tails=none.view(0, 3), relations=none)
    found, correct = loss(hidden, batch, None, None)
    found.backward()
    assert (found.item(), int(correct)) == (0, 0)
    assert loss.relations.weight.grad.count_nonzero() == 0
    assert hidden.grad is not None
    assert hidden.grad.count_nonzero() == 0


def test_triples_are_the_graph_s_and_corrupted_ones_differ_at_one_end(dataset: Path) -> None:
    graph, names = KnowledgeGraph.load(dataset / GRAPH_FOLDER), Names.load(dataset / NAMES_FOLDER)
    info = about_tokens(dataset)[0]

    def document(entity: int) -> tuple[int, ...]:
        tokens = [
            token
            for offsets, of in ((names.entity_offsets, names.entity_tokens), (names.text_offsets, names.text_tokens))
            for token in of[offsets[entity] : offsets[entity + 1]].tolist()
        ]
        return (info.cls, *tokens[:6], info.sep)

    known = {
        (document(head), int(graph.out_relations[edge]), document(int(graph.out_entities[edge])))
        for head in range(len(graph.entities))
        for edge in range(graph.out_offsets[head], graph.out_offsets[head + 1])
    }
    batch, _ = collate(sequences(dataset), [collator(dataset)])
    found = triples(batch)
    assert len(found) > 50
    for heads, relation, tails in found:
        assert (heads[0], relation, tails[0]) in known
        assert heads[3:] == heads[:1] * 2  # of the corrupted ones two have another head, then two another tail
        assert tails[1:3] == tails[:1] * 2
    same = given(batch)
    assert (same.heads[:, 1:3] != same.heads[:, :1]).all()
    assert (same.tails[:, 3:] != same.tails[:, :1]).all()
    named = {relation for head, relation, tail in known if min(len(head), len(tail)) > 2}  # more than [CLS] [SEP]
    assert {relation for _, relation, _ in found} == named


def test_a_sequence_brings_the_same_triples_beside_others(wordpiece: Path) -> None:
    draws = collator(wordpiece)
    together = triples(collate(sequences(wordpiece), [draws])[0])
    alone = [
        triple
        for number in IDS
        for triple in triples(collate(sequences(wordpiece, np.array([number])), [pickle.loads(pickle.dumps(draws))])[0])
    ]
    assert together == alone
    drawn = len(draws._keys(sequences(wordpiece)))  # some have an entity without a name
    assert 1.3 * len(IDS) < drawn < 1.7 * len(IDS)
    assert 0.5 * drawn < len(alone) <= drawn


def test_the_share_of_tokens_is_what_was_said(wordpiece: Path) -> None:
    draws = collator(wordpiece)
    own = sequences(wordpiece, np.arange(460))
    batch, _ = collate(own, [draws])
    assert batch.tail is not None
    assert 0 < batch.tail.tokens <= draws.token_share * len(own.tokens)  # each entity of a batch is written once


def test_texts_are_cut(wordpiece: Path) -> None:
    lengths = [
        collate(sequences(wordpiece), [collator(wordpiece, max_text_tokens=most)])[0].cu_seqlens.diff()[len(IDS) :]
        for most in (1, 6)
    ]
    assert lengths[0].max() == 3
    assert lengths[1].max() > 3
