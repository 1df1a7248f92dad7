"""The plan: what it compares, how it orders, and what it says of what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed_test
from tests.planning.made_plans import choice
from tests.planning.made_plans import planned as planned_row
from tests.planning.test_trace import plain
from tests.training.test_routing import config
from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.planning import Choice, Machine, Plan, Planned, Planner, device_of, open_for_planning
from trelm_ds.planning.choices import choices, degrees, sizes_of_micro_batches
from trelm_ds.planning.hardware import GIB
from trelm_ds.planning.plan import in_order
from trelm_ds.planning.shown import best_of_each, to_plain

BATCH = 64


def settings(**model: Any) -> Config:
    """Wide enough that memory depends on everything, with a global batch of 64 sequences of 512 tokens."""
    base = plain()
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 512, "num_hidden_layers": 2}
    trainer = replace(base.trainer, global_batch_size=BATCH, micro_batch_tokens=4096, precision="bf16")
    return replace(base, model=replace(base.model, **sizes | model), trainer=trainer)


def planned() -> Plan:
    return Planner(settings(), Machine(device_of("a100-80g"), 1, 2), None).plan()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Planned in a process of its own: imaginary ranks need one that has no process group."""
    return run_distributed_test(planned, 1)[0]


def row_of(plan: Plan, **wanted: Any) -> Planned:
    chosen = Choice(1, False, 1, 4096, False)._replace(**wanted)
    return next(row for row in plan.rows if row.choice == chosen)


def peak(plan: Plan, **wanted: Any) -> int:
    memory = row_of(plan, **wanted).memory
    assert memory is not None
    return memory.peak


def test_every_choice_is_planned_once_and_the_best_is_first(plan: Plan) -> None:
    names = [row.choice for row in plan.rows]
    assert len(set(names)) == len(names) == 7 * 2 * 2 * len({choice.micro_batch_tokens for choice in names})
    assert {choice.tensor for choice in names} == {1, 2}  # what divides the GPUs of a node
    assert plan.best is plan.rows[0]
    fitting = [row for row in plan.rows if not row.problem]
    assert plan.best.tokens_per_s > 0.98 * max(row.tokens_per_s for row in fitting)
    assert [bool(row.problem) for row in plan.rows] == sorted(bool(row.problem) for row in plan.rows)
    kinds = [row.choice._replace(micro_batch_tokens=0) for row in best_of_each(plan)]
    assert len(kinds) == len(set(kinds)) == 28


def test_what_comes_first() -> None:
    simple, fast = planned_row(choice(0, 2048), 99), planned_row(choice(2, 2048), 100)
    mine, slow = planned_row(choice(3, 2048), 98.5), planned_row(choice(1, 2048), 90)
    far, near = (planned_row(choice(1, tokens), 200, gib, "too large") for tokens, gib in ((8192, 9.0), (4096, 1.0)))
    never = Planned(choice(1, 1024), "odd")
    rows = [far, never, slow, fast, simple, mine, near]
    assert in_order(rows, mine.choice) == [mine, simple, fast, slow, near, far, never]  # it needs no change
    assert in_order(rows, slow.choice)[:2] == [simple, fast]  # too slow to stay
    assert in_order(rows, choice(2, 8192))[0] == fast  # a smaller size of the same is the smaller change


def test_memory_follows_the_choice(plan: Plan) -> None:
    assert peak(plan, micro_batch_tokens=2048) < peak(plan) < peak(plan, micro_batch_tokens=8192)
    assert peak(plan, checkpointing=True) < peak(plan)
    assert peak(plan, stage=1) < peak(plan, stage=0)
    assert peak(plan, offload=True) < peak(plan)
    tensor, alone = row_of(plan, tensor=2), row_of(plan)
    assert tensor.memory is not None
    assert alone.memory is not None
    assert tensor.memory.activations < alone.memory.activations


def test_time_and_traffic_follow_the_choice(plan: Plan) -> None:
    alone, shared, recomputed = row_of(plan), row_of(plan, tensor=2), row_of(plan, checkpointing=True)
    assert alone.time is not None
    assert shared.time is not None
    assert recomputed.time is not None
    assert alone.time.passes < recomputed.time.passes < 1.5 * alone.time.passes
    assert shared.time.tensor > 0 == alone.time.tensor
    assert alone.traffic.keys() == {"data"}
    assert shared.traffic.keys() == {"tensor"}  # one model on both GPUs: nobody else has its parts
    assert row_of(plan, stage=2).traffic["data"]["all-reduce"] == 4 * alone.traffic["data"]["all-reduce"]
    assert alone.micro_batches == 4
    assert 0 < alone.mfu < 0.8
    assert alone.tokens_per_s == pytest.approx(BATCH * 512 / alone.time.total)


def test_slow_links_cost_where_gradients_cross_them() -> None:
    device = device_of("a100-80g")
    near, far = (
        Planner(settings(), Machine(device, *shape), None).planned(Choice(1, False, 1, 4096, False))
        for shape in ((1, 8), (8, 1))
    )
    assert near.time is not None
    assert far.time is not None
    assert far.time.data == pytest.approx(near.time.data * device.node_link / device.network)
    both = Planner(settings(), Machine(device, 2, 4), None).planned(Choice(1, False, 1, 4096, False))
    assert both.time is not None
    assert both.time.data == pytest.approx(far.time.data / 4)  # over all four cards of a node
    assert far.time.passes == pytest.approx(near.time.passes, rel=0.05)  # other sizes were traced


def test_what_cannot_be_says_why() -> None:
    planner = Planner(settings(), Machine(device_of("2g"), 1, 1), None)
    large = planner.planned(Choice(0, False, 1, 32768, False))
    assert "GiB more; activations are most of it" in large.problem
    assert large.memory is not None
    three = Planner(settings(), Machine(device_of("h100"), 3, 1), None).planned(Choice(1, False, 1, 4096, False))
    assert three.problem.startswith("trainer.global_batch_size 64 is no multiple of 3 data-parallel ranks; change it")
    assert three.memory is None
    small = replace(settings(), trainer=replace(settings().trainer, global_batch_size=1))
    assert Planner(small, Machine(device_of("0.1g"), 1, 1), None).plan().best is None


def test_offloaded_states_must_fit_the_node() -> None:
    offloaded = Choice(2, True, 1, 4096, False)
    unknown = Machine(device_of("h100"), 1, 8)
    planned = Planner(settings(), unknown, None).planned(offloaded)
    assert not planned.problem
    assert planned.memory is not None
    needed = 8 * planned.memory.host
    assert not Planner(settings(), unknown._replace(host=2 * needed), None).planned(offloaded).problem
    small = Planner(settings(), unknown._replace(host=needed), None)  # the node needs some itself
    assert "CPU memory of a node, which has" in small.planned(offloaded).problem
    assert not small.planned(offloaded._replace(offload=False)).problem


def problem_of_two_ranks(config: Config) -> str:
    return Planner(config, Machine(device_of("h100"), 1, 2), None).planned(Choice(1, False, 2, 4096, False)).problem


def test_models_that_ranks_cannot_share() -> None:
    odd, compact = settings(num_attention_heads=1), replace(settings(), routing=replace(config().routing, compact=True))
    problems = [run_distributed_test(problem_of_two_ranks, 1, mine)[0] for mine in (odd, compact)]
    assert "model.tensor_parallel: 2 does not divide" in problems[0]
    assert "must be false with model.tensor_parallel" in problems[1]  # what training refuses


def test_what_only_a_dataset_can_tell_is_asked_for() -> None:
    with_kepler = replace(settings(), kepler=replace(settings().kepler, weight=1.0))
    with pytest.raises(UserError, match=r"--data: needed to plan with kepler\.weight"):
        Planner(with_kepler, Machine(device_of("h100"), 1, 1), None)


def test_a_dataset_gives_lengths_tables_and_knowledge(tiny_dataset: Path) -> None:
    trelm = config(micro_batch_tokens=512)
    data = open_for_planning(trelm, str(tiny_dataset))
    planner = Planner(trelm, Machine(device_of("a100-80g"), 1, 2), data)
    found = planner.planned(planner.configured)
    assert not found.problem
    assert found.memory is not None
    assert found.memory.tables > 0
    assert found.traffic["data"]["all-to-all"] > 0
    assert planner.step_tokens == pytest.approx(trelm.trainer.global_batch_size * data.steps.reader.lengths.mean())
    alone = Planner(trelm, Machine(device_of("a100-80g"), 1, 1), data).planned(planner.configured)
    assert alone.memory is not None
    assert found.memory.tables < alone.memory.tables  # each rank has its share of the rows
    on_host = replace(
        trelm,
        memory=replace(trelm.memory, placement="cpu"),
        injection=replace(trelm.injection, placement="cpu"),
    )
    elsewhere = Planner(on_host, Machine(device_of("a100-80g"), 1, 1), data).planned(planner.configured)
    assert elsewhere.memory is not None
    assert elsewhere.memory.tables == 0


def test_the_choice_that_the_settings_have(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    content = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"}
    file.write_text(json.dumps({"zero_optimization": content}))
    mine = settings(activation_checkpointing=True)
    mine = replace(mine, trainer=replace(mine.trainer, ds_config=str(file)))
    planner = Planner(mine, Machine(device_of("h100"), 1, 2), None)
    assert planner.configured == Choice(2, True, 1, 4096, True)
    assert planner.configured.name == "zero2-offload-4096-recomputed"
    assert planner.configured.applied(settings()).model == mine.model
    assert planner.ds_config(planner.configured)["zero_optimization"] == content  # the user's own file
    assert planner.ds_config(planner.configured._replace(stage=3))["zero_optimization"]["stage"] == 3
    file.write_text(json.dumps({"zero_optimization": content | {"reduce_bucket_size": 10**9}}))
    larger = Planner(mine, Machine(device_of("h100"), 1, 2), None)
    own, others = (one.planned(one.configured).memory for one in (planner, larger))
    assert own is not None
    assert others is not None
    assert others.buckets > own.buckets


def test_sizes_of_micro_batches() -> None:
    assert sizes_of_micro_batches(3000, 600, 5000) == [2048, 3000, 4096, 8192]
    assert sizes_of_micro_batches(100, 600, 5000)[0] == 600  # the longest sequence must fit
    assert max(sizes_of_micro_batches(4096, 512, 10**9)) == 131072
    assert degrees(1, 6) == [1, 2]
    assert degrees(3, 6) == [1, 2, 3]
    assert {choice.tensor for choice in choices([4096], [1, 3])} == {1, 3}


def test_as_json(plan: Plan) -> None:
    found = to_plain(plan)
    assert len(found["choices"]) == len(plan.rows)
    first = found["choices"][0]
    parts = ("weights", "optimizer", "tables", "gradients", "buckets", "activations", "temporary")
    assert (
        max(sum(first["memory_bytes"][part] for part in parts), first["memory_bytes"]["step"])
        == (first["memory_bytes"]["peak"])
    )
    assert found["machine"]["usable_bytes"] < 80 * GIB
