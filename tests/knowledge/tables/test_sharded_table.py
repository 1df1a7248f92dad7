"""Tables over ranks: who owns what, look-ups and sending on real gloo ranks, files for any number of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tests.distributed import run_distributed_test
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import ShardedTable, TableGroup

CPU = torch.device("cpu")
WIDTH = 5


def content(rows: Tensor) -> Tensor:
    """What the tests' tables hold in each row; exact in bf16."""
    return (rows[:, None] * 7 + torch.arange(WIDTH)) % 251


def filled(n_rows: int, dtype: torch.dtype, group: TableGroup) -> ShardedTable:
    table = ShardedTable(n_rows, WIDTH, dtype, CPU, group)
    table.fill(content, batch=3)
    return table


def test_a_world_of_one_needs_no_group() -> None:
    table = filled(11, torch.float32, TableGroup())
    rows = torch.tensor([7, 0, 7, 10])
    lookup = table.start_lookup(rows)
    table.local.zero_()  # what is on its way is as it was at the start
    assert torch.equal(lookup.wait(), content(rows).float())
    assert torch.equal(lookup.wait(), content(rows).float())
    assert table.start_lookup(rows[:0]).wait().shape == (0, WIDTH)
    for where in (rows, table.route(rows)):
        named, values = table.send(where, content(rows))
        assert torch.equal(named, rows)
    assert torch.equal(values, content(rows))


def test_a_row_that_does_not_exist_is_a_bug() -> None:
    table = filled(11, torch.float32, TableGroup())
    for row in (-1, 11):
        with pytest.raises(AssertionError, match="no such row"):
            table.start_lookup(torch.tensor([row]))


def lookups_and_sending(n_rows: int, dtype: torch.dtype) -> None:
    dist.init_process_group("gloo")
    group = TableGroup.of_all_ranks(CPU)
    table = filled(n_rows, dtype, group)
    draw = torch.Generator().manual_seed(0)
    for step in range(10):
        # The same draws on all ranks: each knows what the others ask. Some ask for nothing, some for a row twice.
        sizes = torch.randint(0, 9, (group.world_size,), generator=draw) * (torch.arange(group.world_size) != step % 3)
        asked = [torch.randint(n_rows, (int(size),), generator=draw) for size in sizes]
        mine = asked[group.rank]
        route = table.route(mine)
        first, second, third = table.start_lookup(mine), table.start_lookup(route), table.start_lookup(mine[:1])
        for lookup, rows in ((third, mine[:1]), (first, mine), (second, mine)):
            found = lookup.wait()
            assert found.dtype == dtype
            assert torch.equal(found, content(rows).to(dtype))

        place = torch.cat([torch.arange(len(rows)) for rows in asked])
        sender = torch.cat([torch.full_like(rows, rank) for rank, rows in enumerate(asked)])
        everything = torch.cat(asked)
        here = everything % group.world_size == group.rank
        rows, values = table.send(mine, torch.stack([mine, place[sender == group.rank]], 1).to(dtype))
        assert torch.equal(rows, everything[here])  # by rank, then as sent
        assert torch.equal(values, torch.stack([everything, place], 1)[here].to(dtype))
        assert torch.equal(table.send(route, mine[:, None])[1][:, 0], everything[here])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert table.start_lookup(nothing).wait().shape == (0, WIDTH)
    assert table.send(nothing, torch.zeros(0, 3))[1].shape == (0, 3)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world_size", "n_rows", "dtype"),
    [(3, 11, torch.bfloat16), (2, 40, torch.int64), (4, 3, torch.float32)],
    ids=["uneven bf16", "int64", "fewer rows than ranks"],
)
def test_look_ups_and_sending_on_gloo_ranks(world_size: int, n_rows: int, dtype: torch.dtype) -> None:
    run_distributed_test(lookups_and_sending, world_size, n_rows, dtype)


def test_every_rank_fills_its_own_rows_in_the_same_number_of_calls() -> None:
    n_rows, calls = 10, []
    for rank in range(4):
        table = ShardedTable(n_rows, WIDTH, torch.float32, CPU, TableGroup(rank, 4))
        sizes: list[int] = []

        def values_of(rows: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(rows))
            return content(rows)

        table.fill(values_of, batch=1)
        calls.append(sizes)
        assert torch.equal(table.local, content(table.owned).float())
    assert calls == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]]


def test_paper_scale_every_row_has_one_owner_and_place() -> None:
    n_rows, width, ranks = 3_085_345 + 14_655, 2 * 768, 64
    owners = torch.zeros(n_rows, dtype=torch.int64)
    shards = []
    for rank in range(ranks):
        table = ShardedTable(n_rows, width, torch.bfloat16, torch.device("meta"), TableGroup(rank, ranks))
        owned = table.owned
        assert table.local.shape == (len(owned), width)
        owners[owned] += 1
        places = owned // ranks  # `place` moves to the table's device, which has no numbers
        assert torch.equal(places, torch.arange(len(owned)))
        shards.append(table.bytes)
    assert bool((owners == 1).all())
    assert sum(shards) == n_rows * width * 2 == 9_523_200_000  # the specification's 9.5 GB
    assert max(shards) == 48_438 * width * 2 == 148_801_536


def save_from(world_size: int, folder: Path, dtype: torch.dtype, n_rows: int = 11) -> None:
    for rank in range(world_size):
        filled(n_rows, dtype, TableGroup(rank, world_size)).save(folder, "t")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (4, 2), (2, 3), (3, 3), (3, 16), (16, 3)])
def test_shards_load_on_any_number_of_ranks(tmp_path: Path, before: int, after: int, dtype: torch.dtype) -> None:
    save_from(before, tmp_path, dtype)
    assert sorted(path.name for path in tmp_path.iterdir())[0] == f"t-00000-of-{before:05d}.safetensors"
    for rank in range(after):
        table = ShardedTable(11, WIDTH, dtype, CPU, TableGroup(rank, after))
        table.load(tmp_path, "t")
        assert torch.equal(table.local, content(table.owned).to(dtype))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 3), (4, 2)])
def test_what_every_shard_holds_is_shown_while_loading(tmp_path: Path, before: int, after: int) -> None:
    save_from(before, tmp_path, torch.float32)
    for rank in range(after):
        table = ShardedTable(11, WIDTH, torch.float32, CPU, TableGroup(rank, after))
        shown = torch.full((11, 2), -1.0)
        for rows, values in table.load_showing(tmp_path, "t", 2):
            shown[rows] = values
        assert torch.equal(shown, content(torch.arange(11))[:, :2].float())
        assert torch.equal(table.local, content(table.owned).float())


def test_another_format_is_converted_on_loading(tmp_path: Path) -> None:
    save_from(2, tmp_path, torch.float32)
    table = ShardedTable(11, WIDTH, torch.bfloat16, CPU, TableGroup())
    table.load(tmp_path, "t")
    assert torch.equal(table.local, content(table.owned).bfloat16())


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "t-00000-of-00001.safetensors").mkdir()
    with pytest.raises(OSError, match="t-00000-of-00001"):
        save_from(1, tmp_path, torch.float32)


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def load(n_rows: int = 11, width: int = WIDTH, name: str = "t") -> None:
        ShardedTable(n_rows, width, torch.float32, CPU, TableGroup()).load(tmp_path, name)

    with pytest.raises(UserError, match=r"holds no t-\*-of-\*.safetensors"):
        load()
    save_from(3, tmp_path, torch.float32)
    with pytest.raises(UserError, match="holds no u-"):
        load(name="u")
    with pytest.raises(UserError, match=r"table of 11 rows x 5, this run's has 12 rows x 5; go on with"):
        load(n_rows=12)
    with pytest.raises(UserError, match=r"11 rows x 5, this run's has 11 rows x 6"):
        load(width=6)
    middle = tmp_path / "t-00001-of-00003.safetensors"
    good = middle.read_bytes()
    middle.write_bytes(good[:50])
    with pytest.raises(UserError, match=r"t-00001-of-00003.safetensors: cannot be read"):
        load()
    save_file({"rows": torch.zeros(3, WIDTH)}, middle, {"table": f"11 rows x {WIDTH}"})
    with pytest.raises(UserError, match=r"t-00001-of-00003.safetensors"):
        load()
    middle.unlink()
    with pytest.raises(UserError, match="t lacks shard 1 of 3, counted from 0"):
        load()
    middle.write_bytes(good)
    load()
    save_from(2, tmp_path, torch.float32)
    with pytest.raises(UserError, match=r"as saved by \[2, 3\] ranks"):
        load()


def test_reading_the_graph_does_without_torch() -> None:
    # Preparation starts many processes, and torch would cost each a second and 200 MB.
    code = "import sys, trelm_ds.corpus; assert 'trelm_ds.knowledge' in sys.modules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
