"""The memory bank against the paper's equations, written out one by one, on one rank and on several."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_distributed_test
from trelm_ds.config import MemoryConfig
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import MemoryBank, MemoryUpdate, TableGroup, local_memories, memory_lambda, memory_window
from trelm_ds.knowledge.tables.memory_bank import sum_by_row

CPU = torch.device("cpu")
D = 7


# Eq. 4


def equation_4(states: Tensor, l: int, r: int, k: int, start: int, stop: int) -> list[float]:  # noqa: E741
    """The paper's sum from l - k to r + k, over the tokens that exist and are not special."""
    terms = [states[i].double() for i in range(l - k, r + k + 1) if start <= i < stop]
    return (sum(terms[1:], terms[0]) / len(terms)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_local_memories_are_equation_4(k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.randn(32, D).to(dtype).requires_grad_()
    # Sequences at 0..11 and 12..31, whose first and last tokens are special.
    spans = [(1, 1, 1, 11), (10, 10, 1, 11), (1, 10, 1, 11), (5, 6, 1, 11), (13, 14, 13, 31), (30, 30, 13, 31)]
    first, last, start, stop = np.array(spans).T
    window = torch.from_numpy(np.stack(memory_window(first, last, start, stop, k), 1))
    found = local_memories(states, window)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    expected = [equation_4(states.detach(), *span[:2], k, *span[2:]) for span in spans]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_a_window_ends_where_its_sequence_does() -> None:
    edges = np.array([[10], [12], [5], [20]])
    assert [int(edge[0]) for edge in memory_window(*edges, k=0)] == [10, 13]
    assert [int(edge[0]) for edge in memory_window(*edges, k=2)] == [8, 15]
    assert [int(edge[0]) for edge in memory_window(*edges, k=6)] == [5, 19]
    assert [int(edge[0]) for edge in memory_window(*edges, k=7)] == [5, 20]


def test_an_empty_window_is_0_and_states_outside_do_not_matter() -> None:
    states = torch.full((6, D), float("nan"))
    states[2:4] = torch.arange(2.0)[:, None]
    found = local_memories(states, torch.tensor([[2, 4], [3, 3], [0, 0], [3, 4], [6, 6]]))
    assert found[:, 0].tolist() == [0.5, 0.0, 0.0, 1.0, 0.0]
    assert local_memories(states, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, D)


def test_sums_of_bf16_states_are_fp32() -> None:
    states = torch.ones(1000, D, dtype=torch.bfloat16)  # a sum in bf16 ends at 256
    assert local_memories(states, torch.tensor([[0, 1000]]))[0].tolist() == [1.0] * D


def test_sums_by_row_add_in_order() -> None:
    draw = torch.Generator().manual_seed(0)
    values, rows = torch.randn(3000, 2, generator=draw), torch.randint(-1, 3, (3000,), generator=draw)
    sums, counts = sum_by_row(values, rows, 4)
    expected = torch.zeros(4, 2)
    for value, row in zip(values, rows, strict=True):
        if row >= 0:
            expected[row] += value
    assert torch.equal(sums, expected)  # the same rounding, so the same order
    assert counts.tolist() == [int((rows == row).sum()) for row in range(4)]


# Eq. 8


def test_lambda_is_equation_8_by_epoch() -> None:
    settings = MemoryConfig(initial_lambda=0.5, beta=2.0, decay_share=None, release_fraction=0.1)
    assert [memory_lambda(settings, 10 * epoch, 100, epoch) for epoch in range(4)] == [0.5, 0.25, 0.125, 0.0625]
    assert memory_lambda(settings, 89, 100, 1) == 0.25
    assert memory_lambda(settings, 90, 100, 1) == memory_lambda(settings, 99, 100, 0) == 0.0


def test_lambda_is_equation_8_by_steps() -> None:
    settings = MemoryConfig(initial_lambda=0.8, beta=4.0, decay_every_steps=10, release_fraction=0.0)
    assert [memory_lambda(settings, step, 40, 5) for step in (0, 9, 10, 19, 20, 39)] == pytest.approx(
        [0.8, 0.8, 0.2, 0.2, 0.05, 0.0125]
    )


def test_lambda_is_equation_8_by_shares_of_the_run() -> None:
    settings = MemoryConfig(decay_share=3, release_fraction=0.0)
    assert [memory_lambda(settings, step, 10, 7) for step in (0, 3, 4, 6, 7, 9)] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert memory_lambda(MemoryConfig(), 89, 100, 0) == 0.5 / 2**4


@pytest.mark.parametrize(
    ("share", "max_steps", "first"), [(0.43, 100, 57), (0.29, 100, 71), (0.1, 15, 14), (1.0, 5, 0), (0.3, 10, 7)]
)
def test_lambda_is_0_from_the_step_that_the_share_says(share: float, max_steps: int, first: int) -> None:
    settings = MemoryConfig(release_fraction=share, decay_share=None)
    values = [memory_lambda(settings, step, max_steps, 0) for step in range(max_steps)]
    assert values == [0.5] * first + [0.0] * (max_steps - first)


def test_a_long_decay_ends_at_0() -> None:
    settings = MemoryConfig(decay_every_steps=1, release_fraction=0.0)
    assert memory_lambda(settings, 999_999, 1_000_000, 0) == 0.0


# Eq. 5 and 6


class Occurrence(NamedTuple):
    """A mention of an item: Eq. 4 and the state of its sequence's first token."""

    row: int
    local: np.ndarray
    cls: np.ndarray
    new_context: bool


@dataclass
class LiteralBank:
    """Memories in double precision, row by row, with every context ever seen at hand."""

    start: np.ndarray
    settings: MemoryConfig
    local: dict[int, np.ndarray] = field(default_factory=dict)
    ema: dict[int, np.ndarray] = field(default_factory=dict)
    contexts: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def update(self, occurrences: list[Occurrence]) -> None:
        gamma = self.settings.gamma
        for row in {occurrence.row for occurrence in occurrences}:
            mine = [occurrence for occurrence in occurrences if occurrence.row == row]
            mean = sum(occurrence.local for occurrence in mine) / len(mine)
            for _ in mine:  # Eq. 5, each towards their mean
                self.local[row] = (1 - gamma) * self.local.get(row, self.start[row]) + gamma * mean
            contexts = [occurrence.cls for occurrence in mine if occurrence.new_context]
            self.contexts[row] += contexts
            for _ in contexts:
                mean = sum(contexts) / len(contexts)
                self.ema[row] = (1 - gamma) * self.ema.get(row, self.start[row]) + gamma * mean

    def memories(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        contexts = self.contexts[row]
        local, global_ = self.local.get(row, self.start[row]), self.start[row]
        if contexts:
            global_ = sum(contexts) / len(contexts) if self.settings.global_update == "mean" else self.ema[row]
        return local, global_, len(contexts)


def start_values(n_rows: int) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(n_rows, D)).astype(np.float32).astype(np.float64)


def draw_step(draw: random.Random, numbers: np.random.Generator, n_rows: int) -> list[list[Occurrence]]:
    """Sequences with mentions of few rows again and again; some steps have no sequence, some sequences no mention."""
    sequences = []
    for _ in range(draw.choice([0, 1, 3, 8])):
        cls, seen = numbers.normal(size=D).astype(np.float32), set()
        sequence = []
        for _ in range(draw.choice([0, 1, 2, 5])):
            row = min(int(draw.expovariate(0.25)), n_rows - 2)  # the last is never seen
            local = numbers.normal(size=D).astype(np.float32)
            sequence.append(Occurrence(row, local.astype(np.float64), cls.astype(np.float64), row not in seen))
            seen.add(row)
        sequences.append(sequence)
    return sequences


def make_bank(n_rows: int, settings: MemoryConfig, group: TableGroup) -> MemoryBank:
    bank = MemoryBank(n_rows, D, settings, CPU, group)
    bank.initialise(lambda rows: torch.from_numpy(start_values(n_rows)[rows.numpy()]), batch=4)
    return bank


def apply(bank: MemoryBank, sequences: list[list[Occurrence]]) -> int:
    """A step of one rank: its rows, then its sequences in two micro-batches, with items without memory among them."""
    rows = sorted({occurrence.row for sequence in sequences for occurrence in sequence})
    update = MemoryUpdate(torch.tensor(rows, dtype=torch.int64), D, CPU)
    for part in (sequences[::2], sequences[1::2]):
        items = [item for sequence in part for item in sequence]
        index = torch.tensor([-1, *(rows.index(item.row) for item in items)], dtype=torch.int64)
        local = np.stack([np.full(D, np.nan), *(item.local for item in items)])
        cls = np.stack([np.full(D, np.nan), *(item.cls for item in items)])
        new = torch.tensor([True, *(item.new_context for item in items)])
        update.add(index, torch.from_numpy(local).float(), torch.from_numpy(cls).float(), new)
    return update.apply(bank)


class Outcome(NamedTuple):
    """All rows after fifty steps, and the rows updated in all of them."""

    local: np.ndarray
    global_: np.ndarray
    seen: np.ndarray
    updated: int
    total: np.ndarray


def fifty_steps_with_each(n_rows: int, every_settings: list[MemoryConfig]) -> list[Outcome]:
    dist.init_process_group("gloo")
    group = TableGroup.of_all_ranks(CPU)
    outcomes = [fifty_steps(make_bank(n_rows, settings, group), group) for settings in every_settings]
    dist.destroy_process_group()
    return outcomes


def fifty_steps(bank: MemoryBank, group: TableGroup) -> Outcome:
    """The same sequences for any number of ranks, dealt out to them, of which one has none in each step."""
    n_rows = bank.table.n_rows
    draw, numbers, updated = random.Random(3), np.random.default_rng(3), 0
    for step in range(50):
        sequences = draw_step(draw, numbers, n_rows)
        workers = [rank for rank in range(group.world_size) if group.world_size == 1 or rank != step % group.world_size]
        updated += apply(bank, sequences[workers.index(group.rank) :: len(workers)] if group.rank in workers else [])
    rows = torch.arange(n_rows) if group.rank == 0 else torch.zeros(0, dtype=torch.int64)
    memories = bank.start_lookup(rows).wait()
    assert memories.local.shape == (len(rows), D)
    filled = int(group.sum(torch.tensor(bank.filled_rows)))
    assert group.rank or int(memories.seen.sum()) == filled
    total = bank.seen_total.numpy()
    return Outcome(*(column.numpy() for column in memories), int(group.sum(torch.tensor(updated))), total)


def test_fifty_steps_on_1_2_and_4_ranks_are_the_literal_equations() -> None:
    n_rows, every_settings = 13, [MemoryConfig(), MemoryConfig(global_update="ema", gamma=0.3)]
    found = [run_distributed_test(fifty_steps_with_each, ranks, n_rows, every_settings)[0] for ranks in (1, 2, 4)]
    for number, settings in enumerate(every_settings):
        literal = LiteralBank(start_values(n_rows), settings)
        draw, numbers, updated = random.Random(3), np.random.default_rng(3), 0
        for _ in range(50):
            occurrences = [item for sequence in draw_step(draw, numbers, n_rows) for item in sequence]
            literal.update(occurrences)
            updated += len({item.row for item in occurrences})
        local, global_, counts = (
            np.array(column) for column in zip(*map(literal.memories, range(n_rows)), strict=True)
        )
        assert counts.max() > 50
        assert counts[-1] == 0
        for outcome in (outcomes[number] for outcomes in found):
            np.testing.assert_allclose(outcome.local, local, rtol=0, atol=1e-6)
            np.testing.assert_allclose(outcome.global_, global_, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(outcome.seen, counts > 0)
            assert outcome.updated == updated
            assert outcome.total[-1] == (counts > 0).sum()
            np.testing.assert_allclose(outcome.total[:-1], global_[counts > 0].sum(0), rtol=0, atol=1e-5)


def occurrences_of(row: int, *values: float, new_context: bool = True) -> list[Occurrence]:
    return [Occurrence(row, np.full(D, value), np.full(D, 10 * value), new_context) for value in values]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_alike_occurrences_in_a_step_are_as_many_steps_of_equation_5(count: int) -> None:
    settings = MemoryConfig(gamma=0.3, global_update="ema")
    at_once, one_by_one = (make_bank(2, settings, TableGroup()) for _ in range(2))
    apply(at_once, [occurrences_of(1, 2.0) for _ in range(count)])
    expected = start_values(2)[1]
    for _ in range(count):
        apply(one_by_one, [occurrences_of(1, 2.0)])
        expected = (1 - 0.3) * expected + 0.3 * 2.0
    np.testing.assert_allclose(at_once.table.local[1, :D], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(at_once.table.local, one_by_one.table.local, rtol=1e-6, atol=1e-6)


def test_global_memory_counts_each_context_once_and_forgets_the_start_value() -> None:
    bank = make_bank(2, MemoryConfig(), TableGroup())
    bank.table.local[1, D:] = 1e6  # of which nothing may stay
    sequence = [*occurrences_of(1, 1.0), *occurrences_of(1, 5.0, 6.0, new_context=False)]
    apply(bank, [sequence])
    assert bank.table.local[1, D:].tolist() == [10.0] * D
    assert bank.contexts.local[:, 0].tolist() == [0, 1]
    assert bank.start_lookup(torch.tensor([1, 0, 1])).wait().seen.tolist() == [True, False, True]
    apply(bank, [occurrences_of(1, 2.0), occurrences_of(1, 6.0)])
    assert bank.table.local[1, D:].tolist() == pytest.approx([30.0] * D)
    assert bank.contexts.local[:, 0].tolist() == [0, 3]


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_gamma_at_its_ends(gamma: float) -> None:
    bank = make_bank(3, MemoryConfig(gamma=gamma), TableGroup())
    apply(bank, [occurrences_of(1, 2.0, 4.0)])
    expected = start_values(3)[1] if gamma == 0 else [3.0] * D
    np.testing.assert_allclose(bank.table.local[1, :D], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(bank.table.local[[0, 2], :D], start_values(3)[[0, 2]], rtol=0, atol=1e-6)


def test_a_row_without_occurrence_stays_as_it_is() -> None:
    bank = make_bank(3, MemoryConfig(), TableGroup())
    before = bank.table.local.clone()
    assert MemoryUpdate(torch.tensor([0, 2]), D, CPU).apply(bank) == 2
    assert torch.equal(bank.table.local, before)
    assert bank.filled_rows == 0
    assert MemoryUpdate(torch.zeros(0, dtype=torch.int64), D, CPU).apply(bank) == 0


def test_a_bf16_bank_rounds_only_what_it_keeps() -> None:
    settings = MemoryConfig(dtype="bf16")
    bank, exact = make_bank(5, settings, TableGroup()), make_bank(5, MemoryConfig(), TableGroup())
    exact.table.local.copy_(bank.table.local)
    sequences = [[*occurrences_of(1, 0.3, 0.7), *occurrences_of(3, 1.1)], occurrences_of(1, -2.3)]
    apply(bank, sequences)
    apply(exact, sequences)
    assert torch.equal(bank.table.local, exact.table.local.bfloat16())
    memories = bank.start_lookup(torch.tensor([4, 0])).wait()
    assert memories.local.dtype == memories.global_.dtype == torch.bfloat16


def test_memories_are_mixed_as_the_settings_say() -> None:
    bank = make_bank(3, MemoryConfig(), TableGroup())
    apply(bank, [occurrences_of(0, 1.0), occurrences_of(1, 3.0)])
    found = bank.start_lookup(torch.tensor([0, 1, 2])).wait()
    letter = replace(bank.settings, match_norm=False, centre_global=False)
    for centre, match in itertools.product((False, True), repeat=2):
        bank.settings = replace(letter, centre_global=centre, match_norm=match)
        local, global_ = found.local.clone(), found.global_.clone()
        if centre:
            global_[:2] -= torch.tensor([10.0, 30.0]).mean()  # the last row is not a state yet
        if match:
            local, global_ = (1.5 * part / part.norm(dim=1, keepdim=True) for part in (local, global_))
        torch.testing.assert_close(bank.mixed(found, torch.tensor(1.5)), local + global_)


def test_placement_cpu_is_the_cpu_whatever_the_models_device() -> None:
    meta = torch.device("meta")  # stands for a GPU
    assert MemoryBank(5, D, MemoryConfig(placement="cpu"), meta, TableGroup()).table.local.device == CPU
    assert MemoryBank(5, D, MemoryConfig(), meta, TableGroup()).table.local.device == meta


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_saved_by_4_loaded_by_2_then_by_3_is_the_same_to_the_bit(tmp_path: Path, dtype: Any) -> None:
    n_rows, settings = 13, MemoryConfig(dtype=dtype)
    whole = make_bank(n_rows, settings, TableGroup())
    draw, numbers = random.Random(1), np.random.default_rng(1)
    for _ in range(5):
        apply(whole, draw_step(draw, numbers, n_rows))
    whole.save(tmp_path / "1")
    for before, after in ((1, 4), (4, 2), (2, 3), (3, 1)):
        for rank in range(after):
            bank = MemoryBank(n_rows, D, settings, CPU, TableGroup(rank, after))
            bank.load(tmp_path / str(before))
            assert torch.equal(bank.table.local, whole.table.local[rank::after])
            assert torch.equal(bank.contexts.local, whole.contexts.local[rank::after])
            assert torch.equal(bank.seen_total, whole.seen_total)
            bank.save(tmp_path / str(after) if after > 1 else tmp_path / "again")
    assert 0 < whole.filled_rows < n_rows
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes()


def test_another_runs_bank_is_refused(tmp_path: Path) -> None:
    make_bank(13, MemoryConfig(), TableGroup()).save(tmp_path)
    with pytest.raises(UserError, match="of a table of 13 rows x 14, this run's has 12 rows x 14"):
        make_bank(12, MemoryConfig(), TableGroup()).load(tmp_path)


def test_bytes_at_paper_scale() -> None:
    settings = MemoryConfig(dtype="bf16")
    banks = [
        MemoryBank(3_100_000, 768, settings, torch.device("meta"), TableGroup(rank, 64)).bytes for rank in range(64)
    ]
    assert sum(banks) == 3_100_000 * (2 * 768 * 2 + 8)
    assert max(banks) == math.ceil(3_100_000 / 64) * (2 * 768 * 2 + 8)
