"""Vectors of entities and relations: matched to the words, from tokens, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_distributed_test
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import TableGroup, VectorTable, mean_of_tokens, vectors_from_file, word_statistics

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


def write(path: Path, vectors: np.ndarray) -> Path:
    np.save(path, vectors)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_vectors_of_the_same_width_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    vectors = translated().numpy().astype(dtype)
    rows = np.array([5, 2, ENTITIES, 0])  # a table of some of the file's rows
    path = write(tmp_path / "v.npy", np.asfortranarray(vectors))
    found = vectors_from_file(path, ENTITIES, RELATIONS, rows, D, 0)(torch.tensor([2, 0, 1]))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, vectors[[ENTITIES, 5, 2]].astype(np.float32))


@pytest.mark.parametrize("size", [4, 11])
def test_another_width_is_projected_linearly(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "v.npy", translated().numpy())
    everything = np.arange(ENTITIES + RELATIONS)
    vectors_of = vectors_from_file(path, ENTITIES, RELATIONS, everything, size, seed=3)
    found = vectors_of(torch.from_numpy(everything))
    assert found.shape == (ENTITIES + RELATIONS, size)
    for head in range(0, ENTITIES - 1, 2):
        relation = found[ENTITIES + head // 2 % RELATIONS]
        torch.testing.assert_close(found[head] + relation, found[head + 1], rtol=0, atol=1e-4)
    if size >= D:  # orthonormal rows keep inner products
        torch.testing.assert_close(found @ found.T, translated() @ translated().T, rtol=1e-5, atol=1e-4)
    else:  # orthonormal columns: never longer
        assert bool((found.norm(dim=1) <= translated().norm(dim=1) + 1e-4).all())
        basis = torch.linalg.lstsq(translated(), found).solution
        torch.testing.assert_close(basis.T @ basis, torch.eye(size), rtol=0, atol=1e-5)
    again = vectors_from_file(path, ENTITIES, RELATIONS, everything, size, seed=3)(torch.arange(4))
    torch.testing.assert_close(again, found[:4])
    other = vectors_from_file(path, ENTITIES, RELATIONS, everything, size, seed=4)(torch.arange(4))
    assert not torch.allclose(other, found[:4])
    assert vectors_of(torch.zeros(0, dtype=torch.int64)).shape == (0, size)


def test_files_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    def open_file(path: Path) -> None:
        vectors_from_file(path, 2000, 3, np.arange(2003), D, 0)

    path = tmp_path / "v.npy"
    with pytest.raises(UserError, match=r"injection.file .*v.npy: cannot be read: No such file"):
        open_file(path)
    for shape in ((2000, D), (2003,), (2003, 0), (2003, 2, 2)):
        with pytest.raises(UserError, match=r"has shape \[.*one row for each of 2,000 entities \+ 3 relations"):
            open_file(write(path, np.zeros(shape, np.float32)))
    for array in (np.zeros((2003, D), np.int64), np.zeros((2003, D), np.complex64), np.array(["a"])):
        with pytest.raises(UserError, match=r"v.npy: is .*; write an array of float16, float32 or float64"):
            open_file(write(path, array))
    with pytest.raises(UserError, match=r"not a .npy file of numbers \(.*write it with numpy.save"):
        open_file(write(path, np.array([{}], dtype=object)))  # would need pickle
    good = write(path, np.zeros((2003, D), np.float32)).read_bytes()
    for content in (b"", good[:40], good[:-1], b"nonsense", b"PK\x03\x04 nonsense"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"v.npy: not a .npy file of numbers"):
            open_file(path)
    np.savez(tmp_path / "v.npz", np.zeros((2003, D)))
    with pytest.raises(UserError, match=r"v.npz: not a .npy file of numbers"):
        open_file(tmp_path / "v.npz")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_a_number_that_is_not_finite_is_named_when_its_row_is_read(tmp_path: Path, value: float) -> None:
    vectors = np.zeros((5, D))
    vectors[3, 2] = value
    rows = np.array([4, 3, 0, 1, 2])
    vectors_of = vectors_from_file(write(tmp_path / "v.npy", vectors), 4, 1, rows, D, 0)
    assert len(vectors_of(torch.tensor([0, 2, 3, 4]))) == 4
    with pytest.raises(UserError, match=r"v.npy: row 3, counted from 0, is not finite in float32"):
        vectors_of(torch.tensor([0, 1]))
