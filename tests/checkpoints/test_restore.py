"""Runs that go on with another number of ranks or ZeRO stage: the same state to the bit, samples and losses."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.continuations import ALIGNED, CASES, DS_CONFIGS, ROUND_ROBIN, SAVED_AT, SHARED, STEPS, Case
from tests.distributed import run_distributed_test
from tests.training import test_pretrain as plain
from tests.training import test_routing as routed
from tests.training.test_pretrain import losses, without_dropout, without_plots
from trelm_ds.checkpoints.manifest import CheckpointInfo, read_verified
from trelm_ds.checkpoints.restore import load
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect, import_deepspeed
from trelm_ds.errors import UserError
from trelm_ds.knowledge.tables import ShardedTable
from trelm_ds.model import WORD_EMBEDDING, join, partition_of
from trelm_ds.run_folder import committed
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.routing import Routing, whole_weights
from trelm_ds.training.trainer import Trainer

OF_OPTIMIZER = ("weight", "exp_avg", "exp_avg_sq", "updates")


class Run:
    """A trainer that notes which samples this rank has read in which step."""

    def __init__(self, settings: Config, data: Path, run: Path, ranks: Ranks) -> None:
        self.signals, self.samples = StopSignals(), defaultdict[int, list[int]](list)
        self.trainer = build_run(settings, str(data), run, ranks, self.signals)
        substitution = self.trainer.steps.substitution
        readable = substitution.readable

        def noted(epochs: np.ndarray, ids: np.ndarray) -> np.ndarray:
            self.samples[self.trainer.step] += ids.tolist()
            return readable(epochs, ids)

        substitution.readable = noted  # type: ignore[method-assign]

    def train(self) -> dict[int, list[int]]:
        """To the end; the samples of every step, of all ranks."""
        with self.signals:
            assert self.trainer.train() == 0
        every = self.trainer.ranks.data.gather(dict(self.samples))
        return {step: sorted(sample for of_rank in every for sample in of_rank[step]) for step in self.samples}


def has(trainer: Trainer, kind: type) -> bool:
    return any(isinstance(part, kind) for part in trainer.components)


def optimizer_state(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    """What the optimizer has of each parameter, whole, as DeepSpeed's own functions give it; collective."""
    deepspeed = import_deepspeed()
    optimizer, parameters = trainer.engine.optimizer, dict(trainer.engine.module.named_parameters())
    if trainer.engine.zero_optimization_stage() == 0:
        inner = getattr(optimizer, "optimizer", optimizer)
        groups = zip(getattr(optimizer, "fp16_groups", inner.param_groups), inner.param_groups, strict=True)
        masters = {}
        for own, group in groups:
            masters |= dict(zip(own if isinstance(own, list) else own["params"], group["params"], strict=True))
        for name, parameter in parameters.items():
            if parameter in masters:
                yield f"{name} weight", masters[parameter].detach()
                yield from ((f"{name} {key}", value) for key, value in inner.state[masters[parameter]].items())
        return
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()  # which the first step does otherwise
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            lazy = name.endswith(("keys", "key_bias", "values")) and has(trainer, Routing)
            yield f"{name} weight", deepspeed.utils.safe_get_full_fp32_param(parameter)
            for key in ("exp_avg", "exp_avg_sq", *(["updates"] * lazy)):
                yield f"{name} {key}", deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
            step = next(iter(optimizer.optimizer.state.values()))["step"]  # of all: none was skipped
            yield f"{name} step", step


def whole_table(table: ShardedTable, ranks: Ranks) -> torch.Tensor:
    rows = torch.zeros(table.n_rows, table.width, dtype=torch.float64)
    for owned, values in ranks.gather((table.owned.numpy(), table.local.double().numpy())):
        rows[owned] = torch.from_numpy(values)
    return rows


def joined(state: dict[str, torch.Tensor], ranks: Ranks, degree: int, words: int) -> dict[str, torch.Tensor]:
    """The parts of the ranks that share a model, put together."""
    of_model = ranks.rank // degree * degree
    parts = ranks.gather(state)[of_model : of_model + degree]
    for name in state:
        if (partition := partition_of(name.split()[0])) is not None and state[name].dim():
            length = degree * state[name].shape[partition.dimension]
            length = words if name.startswith(WORD_EMBEDDING) else length
            state[name] = join([part[name] for part in parts], partition, length)
    return state


def live_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything a run holds, whole and the same on all ranks; scores of neurons and words without padding."""
    engine, deepspeed = trainer.engine, import_deepspeed()
    state = {name: tensor.double().clone() for name, tensor in optimizer_state(trainer)}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[f"{name} in use"] = parameter.detach().double().clone()
    if (tensor := trainer.ranks.tensor) is not None:
        state = joined(state, trainer.ranks, tensor.degree, engine.module.config.vocab_size)
    counters = [engine.global_steps, engine.global_samples, engine.skipped_steps, engine.lr_scheduler.last_epoch]
    state["counters"] = torch.tensor([float(counter) for counter in counters])
    state["learning rates"] = torch.tensor(engine.get_lr(), dtype=torch.float64)
    if has(trainer, Knowledge):
        knowledge = trainer.component(Knowledge)
        bank, vectors = knowledge.bank, knowledge.vectors
        assert bank is not None
        assert vectors is not None
        tables = {"memory": bank.table, "contexts": bank.contexts, "vectors": vectors}
        state |= {name: whole_table(table, trainer.ranks.data) for name, table in tables.items()}
    if has(trainer, Routing):
        paths = trainer.component(Routing).paths
        assert paths.neurons is not None
        assert paths.scores is not None
        state |= {"path": paths.neurons, "scores": paths.scores.neurons.double()}
    return state


def restart_from(run: Path, copy: Path, ranks: Ranks) -> Path:
    """A run folder with one checkpoint of another run."""
    if ranks.rank == 0:
        name = f"checkpoints/step-{SAVED_AT:08d}"
        shutil.copytree(run / name, copy / name)
    ranks.barrier()
    return copy


def save(cases: list[Case], data: Path, folder: Path, ranks: Ranks) -> list[dict[int, list[int]]]:
    """Undisturbed runs; besides, what each holds when DeepSpeed itself has loaded it."""
    samples = []
    for case in cases:
        run, settings = folder / case.run, case.config(case.stage, folder)
        samples.append(Run(settings, data, run, ranks).train())
        again = Run(settings, data, restart_from(run, folder / f"{case.run}-again", ranks), ranks)
        again.trainer.engine.load_checkpoint(str(run / "checkpoints"), tag=f"step-{SAVED_AT:08d}")
        state = live_state(again.trainer)
        if ranks.rank == 0:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, run / "state.safetensors")
    return samples


def resume(cases: list[Case], data: Path, folder: Path, ranks: Ranks) -> list[tuple[list[str], dict[int, list[int]]]]:
    """Goes on from the checkpoints; what differs after loading, and the samples of the steps."""
    results = []
    for case in cases:
        copy = folder / f"{case.continued}-by-{ranks.world_size}"
        run = Run(
            case.config(case.then, folder, saves=False), data, restart_from(folder / case.run, copy, ranks), ranks
        )
        before, now = load_file(folder / case.run / "state.safetensors"), live_state(run.trainer)
        assert before.keys() == now.keys()
        if case.model.startswith(
            "round robin"
        ):  # where DeepSpeed's own functions read other parameters than they are asked for
            before = {name: tensor for name, tensor in before.items() if name.split()[-1] not in OF_OPTIMIZER}
        differing = [
            name for name, tensor in before.items() if not torch.equal(tensor, now[name].reshape(tensor.shape))
        ]
        results.append((differing, run.train()))
    return results


def on_ranks(function: Callable[..., Any], cases: list[Case], data: Path, folder: Path) -> Any:
    torch.set_num_threads(1)
    ranks = connect()
    try:
        with cheap():
            return function(cases, data, folder, ranks)
    finally:
        disconnect()


@contextlib.contextmanager
def cheap() -> Iterator[None]:
    """Many short runs: without what would cost more than their steps."""
    gc.collect()
    gc.freeze()  # ZeRO 3 collects garbage at every start, which looks through all modules otherwise
    try:
        with without_plots():
            yield
    finally:
        gc.unfreeze()


@pytest.fixture(scope="module")
def saved(
    one_rank: Ranks, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[int, list[int]]]]:
    """The folder of all undisturbed runs, and the samples of each one's steps."""
    folder, samples = tmp_path_factory.mktemp("saved"), {}
    settings = json.loads((DS_CONFIGS / "zero2.json").read_text())
    settings["zero_optimization"]["round_robin_gradients"] = True
    (folder / ROUND_ROBIN).write_text(json.dumps(settings))
    aligned = {"zero_optimization": {"stage": 1, "parameter_alignment": True}}
    (folder / ALIGNED).write_text(json.dumps(aligned))
    every = {case.run: case for cases in (*CASES.values(), *SHARED.values()) for case in cases}
    for size, degree in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2)):
        cases = [case for case in every.values() if (case.ranks, case.degree) == (size, degree)]
        if size == 1:
            with cheap():
                found = save(cases, tiny_dataset, folder, one_rank)
        else:
            found = run_distributed_test(on_ranks, size, save, cases, tiny_dataset, folder)[0]
        samples |= dict(zip((case.run for case in cases), found, strict=True))
    return folder, samples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "cases"),
    [
        *(pytest.param(size, cases, id=f"{size}") for size, cases in CASES.items()),
        *(pytest.param(size, cases, id=f"{size}, {of} to a model") for (size, of), cases in SHARED.items()),
    ],
)
def test_runs_go_on_with_another_number_of_ranks(
    size: int,
    cases: list[Case],
    saved: tuple[Path, dict[str, dict[int, list[int]]]],
    one_rank: Ranks,
    tiny_dataset: Path,
) -> None:
    folder, samples = saved
    if size == 1:
        with cheap():
            results = resume(cases, tiny_dataset, folder, one_rank)
    else:
        results = run_distributed_test(on_ranks, size, resume, cases, tiny_dataset, folder)[0]
    for case, (differing, read) in zip(cases, results, strict=True):
        assert not differing, case
        assert read == {step: samples[case.run][step] for step in range(SAVED_AT, STEPS)}, case
        assert all(len(ids) == 12 for ids in read.values())
        undisturbed = losses(folder / case.run)[SAVED_AT:]
        continued = losses(folder / f"{case.continued}-by-{size}")
        assert len(continued) == STEPS - SAVED_AT
        tolerance = 1e-5 if case.precision == "fp32" else 0.02
        assert continued == pytest.approx(undisturbed, rel=tolerance, abs=0), case


def opened(case: Case, stage: int, data: Path, run: Path, ranks: Ranks, seed: int = 0) -> Trainer:
    settings = case.config(stage, run)
    settings.trainer.seed = seed  # decides the first weights
    return build_run(settings, str(data), run, ranks, StopSignals())


def test_the_same_folder_goes_on_and_the_checkpoint_stays(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, case = tmp_path / "run", Case(1, 1, 2)
    longer = replace(case.config(2, run).trainer, max_steps=STEPS + 2)
    with cheap():
        Run(case.config(1, run), tiny_dataset, run, one_rank).train()
        last = run / "checkpoints" / f"step-{STEPS:08d}"
        before = {path: path.read_bytes() for path in last.rglob("*") if path.is_file()}
        Run(replace(case.config(2, run), trainer=longer), tiny_dataset, run, one_rank).train()
    assert f"{last}: saved by 1 rank under ZeRO 1, continued by 1 rank under ZeRO 2\n" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in last.rglob("*") if path.is_file()} == before
    assert len(losses(run)) == STEPS + 2
    assert read_verified(run / "checkpoints" / f"step-{STEPS + 2:08d}").zero_stage == 2


@pytest.mark.parametrize("stage", ["1_fp32_sums", 2])  # under ZeRO 0 and 3 pickle refers to equal strings differently
def test_resumed_or_not_the_same_bytes(stage: int | str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    with cheap():
        plain.continued(without_dropout(routed.config(stage, "bf16")), tiny_dataset, tmp_path / "run", one_rank)
    undisturbed, resumed = (read_verified(committed(tmp_path / run)[0]).files for run in ("run", "continued"))
    assert undisturbed == resumed  # sizes and hashes


@pytest.mark.parametrize(("stage", "then"), [(0, 1), (1, 3), (3, 0), (2, 1)])
def test_before_its_first_update_the_optimizer_has_nothing(
    stage: int, then: int, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    """As after steps that DeepSpeed has all skipped."""
    case = Case(1, stage, then)
    first, second = (
        opened(case, of, tiny_dataset, tmp_path / f"zero{of}", one_rank, seed) for seed, of in enumerate((stage, then))
    )
    first.engine.save_checkpoint(str(tmp_path), tag="none", save_latest=False)
    info = CheckpointInfo(0, 1, stage, {}, {})
    load(second.engine, tmp_path / "none", info, one_rank)
    assert not getattr(second.engine.optimizer, "optimizer", second.engine.optimizer).state
    with whole_weights(first.engine) as weights, whole_weights(second.engine) as loaded:
        assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert second.train() == 0


def test_what_cannot_be_loaded(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    case, info = Case(1, 1, 3), CheckpointInfo(0, 1, 1, {}, {})
    first = opened(case, 1, tiny_dataset, tmp_path / "run", one_rank)
    first.engine.save_checkpoint(str(tmp_path), tag="none", save_latest=False)
    wider = case.config(3, tmp_path)
    wider.model.intermediate_size = 64
    second = build_run(wider, str(tiny_dataset), tmp_path / "wider", one_rank, StopSignals())
    with pytest.raises(UserError, match=r"none: encoder.layers.0.feed_forward.key_bias is \(48,\) there and \(64,\)"):
        load(second.engine, tmp_path / "none", info, one_rank)
    (tmp_path / "none" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match="every rank needs the files of all ranks") as error:
        load(second.engine, tmp_path / "none", info, one_rank)
    assert "\n" not in str(error.value)
