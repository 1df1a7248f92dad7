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
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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

STEPS, SAVED_AT = 14, 4
OF_OPTIMIZER = ("weight", "exp_avg", "exp_avg_sq", "updates")
MODELS: dict[str, Callable[..., Config]] = {
    "trelm": routed.config,
    "ffn_only": lambda *sizes, **trainer: routed.config(
        *sizes, routing={"trainable": "ffn_only", "top_layers": 1}, **trainer
    ),
    "mlm": plain.config,
    "round robin": routed.config,
    "round robin, then not": routed.config,
    "aligned": routed.config,
    "fp32 sums": routed.config,
    "fp32 sums, then not": routed.config,
    "not, then fp32 sums": routed.config,
}
DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
ROUND_ROBIN, ALIGNED, FP32_SUMS = "round_robin.json", "aligned.json", "ds_configs/zero1_fp32_sums.json"


class Case(NamedTuple):
    """A run that `ranks` save, and the ZeRO stage under which it goes on."""

    ranks: int
    stage: int
    then: int
    model: str = "trelm"
    precision: str = "fp32"
    degree: int = 1
    then_degree: int = 1

    @property
    def run(self) -> str:
        return f"{self.model}-{self.precision}-zero{self.stage}-{self.ranks}-{self.degree}"

    @property
    def continued(self) -> str:
        return f"{self.run}-zero{self.then}-{self.then_degree}"

    def config(self, stage: int, folder: Path, saves: bool = True) -> Config:
        """Under a ZeRO stage, for those that save or those that go on; `folder` holds a DeepSpeed file of our own."""
        settings = MODELS[self.model](
            stage,
            self.precision,
            max_steps=STEPS,
            checkpoint_every=SAVED_AT if saves else STEPS,
            keep_checkpoints=9,
            global_batch_size=12,
            micro_batch_tokens=160,
        )
        if stage == 2 and (self.model == "round robin" or (saves and self.model == "round robin, then not")):
            settings.trainer.ds_config = str(folder / ROUND_ROBIN)
        if self.model == "aligned":
            settings.trainer.ds_config = str(folder / ALIGNED)
        first, _, then = self.model.partition(", then ")
        if stage == 1 and (first if saves else then.removeprefix("not") or first) == "fp32 sums":
            settings.trainer.ds_config = FP32_SUMS
        if self.model == "trelm":
            settings.model.num_hidden_layers = 1
        settings.model.tensor_parallel = self.degree if saves else self.then_degree
        return without_dropout(settings)


def same_stage(ranks: int) -> list[Case]:
    return [Case(ranks, stage, stage) for stage in (range(4) if ranks < 4 else (1, 3))]


# By the ranks that go on.
CASES = {
    1: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        *(Case(1, stage, then) for stage, then in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 3), (3, 1))),
        Case(2, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 1, "fp32 sums, then not", "bf16"),
        Case(2, 1, 1, "aligned", "bf16"),
    ],
    2: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        Case(2, 1, 3),
        Case(2, 0, 2, precision="bf16"),
        Case(2, 2, 2, "round robin, then not"),
        Case(1, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 1, "not, then fp32 sums", "bf16"),
    ],
    3: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        *(Case(2, stage, stage, "ffn_only") for stage in (0, 1, 3)),
        Case(2, 3, 1, "ffn_only"),
        *(Case(2, stage, stage, precision="bf16") for stage in range(4)),
        Case(2, 3, 0, precision="bf16"),
        Case(2, 1, 2, "mlm"),
        Case(2, 2, 2, "round robin"),
        Case(2, 2, 3, "round robin"),
        Case(2, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 3, "fp32 sums", "bf16"),
    ],
    4: [*same_stage(2), Case(4, 3, 3), Case(2, 3, 3, "ffn_only"), Case(2, 1, 0, "mlm")],
}


def shared(ranks: int, degree: int, stage: int, then_degree: int, then: int | None = None, **what: str) -> Case:
    """Saved by `degree` ranks to a model, continued by `then_degree`."""
    return Case(ranks, stage, stage if then is None else then, degree=degree, then_degree=then_degree, **what)


# Tensor parallelism: saved by (data-parallel, tensor-parallel) ranks (2, 1), (1, 2), (2, 2), continued by any other. By
# the ranks that go on, and how many of them share a model: DeepSpeed knows one number in a process.
SHARED = {
    (1, 1): [
        shared(2, 2, 0, 1),
        shared(2, 2, 1, 1, 3),
        shared(2, 2, 1, 1, precision="bf16", model="fp32 sums"),
        shared(4, 2, 2, 1),
        shared(4, 2, 3, 1, 0),
    ],
    (2, 1): [shared(2, 2, 0, 1), shared(4, 2, 3, 1)],
    (2, 2): [
        shared(2, 1, 1, 2),
        shared(2, 1, 3, 2),
        shared(4, 2, 2, 2),
        shared(2, 2, 1, 2, precision="bf16"),
        shared(2, 2, 1, 2, precision="bf16", model="fp32 sums"),
        shared(2, 2, 1, 2, model="ffn_only"),
    ],
    (4, 1): [shared(2, 2, 1, 1), shared(4, 2, 2, 1)],
    (4, 2): [shared(2, 1, 2, 2), shared(2, 2, 3, 2), *(shared(4, 2, stage, 2) for stage in (2, 3))],
}


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
