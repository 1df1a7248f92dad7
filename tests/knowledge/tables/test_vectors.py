"""Vectors of entities and relations: matched to the words, and made from tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_distributed_test
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.knowledge.tables import TableGroup, VectorTable, mean_of_tokens, word_statistics

CPU = torch.device("cpu")
ENTITIES, RELATIONS, D = 23, 4, 6


def translated() -> Tensor:
    """float32 [E + R, D]: entities 2 n + 1 (tails) are entity 2 n (heads) + relation n % R; nowhere near mean 0."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(ENTITIES + RELATIONS, D, generator=draw) * 3 + 5
    for head in range(0, ENTITIES - 1, 2):
        vectors[head + 1] = vectors[head] + vectors[ENTITIES + head // 2 % RELATIONS]
    return vectors


def words() -> Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 0.04 + torch.arange(D) * 0.01


def make_table(vectors: Tensor, group: TableGroup, dtype: torch.dtype = torch.float32) -> VectorTable:
    table = VectorTable(ENTITIES, RELATIONS, D, dtype, CPU, group)
    table.fill(lambda rows: vectors[rows], batch=5)
    return table


def test_matched_vectors_have_the_words_mean_and_scale() -> None:
    mean, scale = word_statistics(words())
    assert scale == pytest.approx(float(np.sqrt(((words() - words().mean(0)).numpy() ** 2).mean())), rel=1e-6)
    table = make_table(translated(), TableGroup())
    table.match(mean, scale)
    found_mean, found_scale = word_statistics(table.local[:ENTITIES])
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=1e-7)
    assert found_scale == pytest.approx(scale, rel=1e-6)
    once = table.local.clone()
    table.match(mean, scale)
    torch.testing.assert_close(table.local[:ENTITIES], once[:ENTITIES], rtol=0, atol=1e-7)


def test_the_translation_rule_survives_matching() -> None:
    table = make_table(translated(), TableGroup())
    table.match(*word_statistics(words()))
    entities, relations = table.local[:ENTITIES], table.local[ENTITIES:]
    for head in range(0, ENTITIES - 1, 2):
        relation = relations[head // 2 % RELATIONS]
        torch.testing.assert_close(entities[head] + relation, entities[head + 1], rtol=0, atol=1e-6)
        torch.testing.assert_close(entities[head + 1] - relation, entities[head], rtol=0, atol=1e-6)


def test_centred_relations_leave_injected_embeddings_at_the_words_mean() -> None:
    table = make_table(translated(), TableGroup())
    mean, scale = word_statistics(words())
    table.match(mean, scale, centre_relations=True)
    entities, relations = table.local[:ENTITIES], table.local[ENTITIES:]
    for sign in (-1, 1):  # every entity with every relation
        injected = entities[:, None] + sign * relations
        torch.testing.assert_close(injected.mean((0, 1)), mean, rtol=0, atol=1e-6)


def made_graph() -> tuple[KnowledgeGraph, np.ndarray]:
    """A graph of twice as many entities, of which the table has every second; a pair may have many relations."""
    draw = np.random.default_rng(4)
    triples = draw.integers(0, [2 * ENTITIES, RELATIONS, 2 * ENTITIES], (300, 3)).astype(np.int32)
    triples = triples[(triples[:, 1] != 3) | (triples[:, 2] % 2 == 1)]  # relation 3 has no tail in the table
    every = np.column_stack([np.arange(2 * ENTITIES), np.zeros(2 * ENTITIES), np.arange(2 * ENTITIES)])
    triples = np.unique(np.concatenate([triples, every.astype(np.int32)]), axis=0)
    return KnowledgeGraph.from_triples(triples), np.arange(0, 2 * ENTITIES, 2)


def related(group: TableGroup) -> VectorTable:
    table = make_table(translated(), group)
    table.relate(*made_graph())
    return table


def test_related_relations_are_mean_differences() -> None:
    graph, entities = made_graph()
    table, vectors = related(TableGroup()), translated()
    heads = np.repeat(np.arange(len(graph.entities)), np.diff(graph.out_offsets))
    for relation in range(RELATIONS):
        of_it = graph.out_relations == relation
        means = []
        assert relation != 3 or not any(end % 2 == 0 for end in graph.out_entities[of_it])
        for ends in (graph.out_entities[of_it], heads[of_it]):
            rows = [int(end) // 2 for end in ends if end % 2 == 0]
            means.append(vectors[rows].mean(0) if rows else vectors[:ENTITIES].mean(0))
        torch.testing.assert_close(table.local[ENTITIES + relation], means[0] - means[1], rtol=0, atol=1e-5)
    assert torch.equal(table.local[:ENTITIES], vectors[:ENTITIES])
    assert len(entities) == ENTITIES


def related_on_ranks() -> tuple[np.ndarray, np.ndarray]:
    dist.init_process_group("gloo")
    table = related(TableGroup.of_all_ranks(CPU))
    dist.destroy_process_group()
    return table.owned.numpy(), table.local.numpy()


def test_ranks_relate_as_one_does() -> None:
    expected = related(TableGroup())
    for rows, values in run_distributed_test(related_on_ranks, 3):
        np.testing.assert_allclose(values, expected.local[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e6])
def test_entities_that_are_all_alike_become_the_words_mean(value: float) -> None:
    mean, scale = word_statistics(words())
    table = make_table(torch.full((ENTITIES + RELATIONS, D), value), TableGroup())
    table.match(mean, scale)
    torch.testing.assert_close(table.local[:ENTITIES], mean.expand(ENTITIES, D))
    assert torch.isfinite(table.local).all()


def test_empty_tables_and_words_that_are_all_alike() -> None:
    mean, scale = word_statistics(words())
    for entities, relations in ((0, 0), (0, 3), (3, 0)):
        table = VectorTable(entities, relations, D, torch.float32, CPU, TableGroup())
        table.match(mean, scale, centre_relations=True)
        assert torch.isfinite(table.local).all()
    table = make_table(translated(), TableGroup())
    table.match(*word_statistics(torch.ones(9, D)))
    assert torch.equal(table.local[:ENTITIES], torch.ones(ENTITIES, D))


def matched_on_ranks(centre_relations: bool) -> tuple[np.ndarray, np.ndarray]:
    dist.init_process_group("gloo")
    table = make_table(translated(), TableGroup.of_all_ranks(CPU))
    table.match(*word_statistics(words()), centre_relations)
    dist.destroy_process_group()
    return table.owned.numpy(), table.local.numpy()


@pytest.mark.parametrize(("world_size", "centre_relations"), [(2, False), (3, True)])
def test_ranks_match_as_one_does(world_size: int, centre_relations: bool) -> None:
    expected = make_table(translated(), TableGroup())
    expected.match(*word_statistics(words()), centre_relations)
    shards = run_distributed_test(matched_on_ranks, world_size, centre_relations)
    assert sum(len(rows) for rows, _ in shards) == ENTITIES + RELATIONS
    for rows, values in shards:
        np.testing.assert_allclose(values, expected.local[rows], rtol=0, atol=1e-7)


def test_bf16_vectors_match_within_their_precision(tmp_path: Path) -> None:
    mean, scale = word_statistics(words())
    table = make_table(translated(), TableGroup(), torch.bfloat16)
    table.match(mean, scale)
    found_mean, found_scale = word_statistics(table.local[:ENTITIES])
    torch.testing.assert_close(found_mean, mean, rtol=0, atol=0.01 * scale)
    assert found_scale == pytest.approx(scale, rel=0.01)
    table.save(tmp_path, "vectors")
    for rank in range(3):
        part = VectorTable(ENTITIES, RELATIONS, D, torch.bfloat16, CPU, TableGroup(rank, 3))
        part.load(tmp_path, "vectors")
        assert torch.equal(part.local, table.local[rank::3])


def test_mean_of_tokens_is_the_mean_of_their_word_embeddings() -> None:
    weight, calls = words(), []

    def embed(tokens: Tensor) -> Tensor:
        calls.append(tokens.tolist())
        return weight[tokens]

    lists = [[3, 9, 3], [], [7], []]
    offsets = torch.tensor([0, 3, 3, 4, 4])
    found = mean_of_tokens(embed, offsets, torch.tensor([3, 9, 3, 7]))
    expected = [weight[tokens].mean(0) if tokens else torch.zeros(D) for tokens in lists]
    torch.testing.assert_close(found, torch.stack(expected))
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(mean_of_tokens(embed, torch.zeros(3, dtype=torch.int64), none), torch.zeros(2, D))
    assert mean_of_tokens(embed, torch.zeros(1, dtype=torch.int64), none).shape == (0, D)
    assert calls == [[3, 7, 9], [], []]
