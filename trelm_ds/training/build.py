"""Builds a run from its settings, top to bottom."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trelm_ds.batches import StepLoader, StepReader
from trelm_ds.checkpoints import CheckpointInfo, Saver, check_decay, choose_checkpoint, identity, load, versions
from trelm_ds.config import Config
from trelm_ds.config_rules import profiled_steps
from trelm_ds.distributed import Ranks
from trelm_ds.engine import build_engine, compile_layers, forget_order, resolve_ds_config
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.run_folder import LOCK, checkpoints_folder, foreign_content
from trelm_ds.stopping import StopRequests, StopSignals
from trelm_ds.tensor_ranks import split
from trelm_ds.tracking import SystemMetrics
from trelm_ds.training.compiling import Compiling
from trelm_ds.training.component import Component
from trelm_ds.training.dataset import RunData, open_dataset, warn_of_idle_settings
from trelm_ds.training.guards import Guard
from trelm_ds.training.held_out import HeldOutLosses
from trelm_ds.training.journal import Journal
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.model import build_model, restrict, with_sizes
from trelm_ds.training.pooler import kept_pooler
from trelm_ds.training.profiling import Profiling
from trelm_ds.training.routing import Routing
from trelm_ds.training.same_batch import SameBatch
from trelm_ds.training.same_weights import SameWeights
from trelm_ds.training.speed import Speed
from trelm_ds.training.trainer import Trainer, reading_position
from trelm_ds.training.watchdog import Watchdog

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Resumed = tuple[Path, CheckpointInfo]


def build_run(
    config: Config, data: str, run: Path, ranks: Ranks, signals: StopSignals, watchdog: Watchdog | None = None
) -> Trainer:
    """Build one run on one rank, as it starts or as its checkpoint has it; collective.

    Until `Trainer.train` has ended, other processes are kept out of the run folder.

    Args:
        data: dataset of `trelm prepare`: a folder or an fsspec URL.
        ranks: all of which build the run.
        signals: that ask it to stop.
        watchdog: that ends it when nothing moves; None for none.

    Raises:
        UserError: settings, dataset and run folder do not fit together; another process trains there.
    """
    # First, since building may take long: the time limit counts from here, and the launcher may end meanwhile.
    requests = StopRequests(signals, run, config.trainer.max_minutes, watch_file=ranks.rank == 0)
    ranks = split(ranks, config.model.tensor_parallel)
    ds_config = resolve_ds_config(config, ranks.data.world_size)
    ranks.all_agree(lambda: check_device(config, ranks.device))
    # Nodes may see different files, so all ranks hear of what any of them misses.
    opened = ranks.all_agree(lambda: open_dataset(config, data, ranks.data))
    model = ranks.all_agree(lambda: build_model(config, opened, ranks.tensor))
    pooler = ranks.all_agree(lambda: kept_pooler(config, model.config, writes=ranks.rank == 0))
    config = with_sizes(config, model.config)
    common = identity(config, model.config, opened.steps.identity)
    with contextlib.ExitStack() as held:
        ranks.all_agree(lambda: _take_folder(run, ranks, held))  # before its checkpoints are looked at
        resumed = _find_checkpoint(config, run, common, ranks)
        ranks.all_agree(lambda: restrict(model, config))
        if config.trainer.compile:
            compile_layers(model, ds_config["zero_optimization"]["stage"])
        engine, optimizer = build_engine(model, config, ds_config, ranks)
        guard = Guard(config.guards, run, writes=ranks.rank == 0)
        parts = _knowledge_parts(config, opened, engine, ranks)
        components: list[Component] = [guard, *parts, *pooler, *_evaluation(config, opened, engine, parts, ranks)]
        if ranks.tensor is not None:
            components += [SameBatch(ranks), SameWeights(engine, ranks)]
        if config.trainer.compile:
            components.append(Compiling())
        first_step = _restore(config, run, opened, resumed, engine, components, ranks)
        forget_order(engine)  # of the passes that entity vectors took
        loader = StepLoader(opened.steps, first_step, config.trainer.max_steps, config.loader.workers)
        reader = StepReader(loader, opened.steps.substitution, run, ranks, ["mlm", *opened.objectives])
        components.append(Speed(config, model, reader, ranks))
        # What the parts hold is the same on all ranks that share a model.
        saved = components if ranks.first_of_model else []
        saver = Saver(engine, run, opened.tokenizer, config.trainer, ranks, saved)
        system = SystemMetrics(config.tracking.system_metrics_every_s, run, ranks)
        held.callback(system.close)
        warn_of_idle_settings(config, opened.prepared.annotator)
        journal = None
        if ranks.rank == 0:
            mlflow_key = _mlflow_key(run, resumed)
            parameters = _parameters(opened, common["dataset"], engine, components, ranks)
            notes = [f"{topic}: {text}" for component in components for topic, text in component.describe().items()]
            journal = Journal(
                config=config,
                ds_config=ds_config,
                run=run,
                steps_done=first_step,
                parameters=parameters,
                hosts=system.hosts,
                mlflow_key=mlflow_key,
                notes=notes,
            )
            components.append(journal)
        if config.trainer.profile_steps is not None:
            window, publish = profiled_steps(config.trainer.profile_steps), journal.log_file if journal else None
            components.append(Profiling(window, run, first_step, ranks, publish))
        return Trainer(
            config=config,
            run=run,
            ranks=ranks,
            steps=opened.steps,
            reader=reader,
            engine=engine,
            optimizer=optimizer,
            weights=_loss_weights(config, opened),
            guard=guard,
            components=components,
            saver=saver,
            system=system,
            identity=common,
            first_step=first_step,
            requests=requests,
            watchdog=watchdog or Watchdog(ranks, run, 0),
            held=held.pop_all(),
        )


def check_device(config: Config, device: torch.device) -> None:
    """Refuse what the device has not: sequence parallelism a CPU, bf16 an old GPU.

    Of bf16, torch would make an emulation, and Triton may fail to compile it.

    Raises:
        UserError: a setting needs another device.
    """
    if device.type != "cuda" and config.model.sequence_parallel:
        raise UserError("model.sequence_parallel: needs GPUs, megatron-core exchanges tokens on CUDA only; set false")
    if device.type != "cuda" or config.trainer.precision != "bf16":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"trainer.precision: bf16 needs a GPU of compute capability 8.0 or newer, and {name} has {major}.{minor}; "
            "set fp32"
        )


def _take_folder(run: Path, ranks: Ranks, held: contextlib.ExitStack) -> None:
    """Make the run folder and keep other runs out of it until `held` is closed."""
    if ranks.rank:
        return
    if what := foreign_content(run):
        raise UserError(f"--out: {run} is {what}; give a folder of its own")
    try:
        run.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(run / LOCK, f"--out: {run}"))
    except OSError as error:
        raise UserError.because(f"--out: cannot write into {run}: {error.strerror}", error) from None


def _find_checkpoint(config: Config, run: Path, common: dict[str, object], ranks: Ranks) -> Resumed | None:
    """Let rank 0 find and verify the checkpoint to continue from, for all."""

    def find() -> Resumed | None:
        chosen = choose_checkpoint(config.trainer.resume, run, common) if ranks.rank == 0 else None
        if chosen is not None:
            check_decay(*chosen, config)
        return chosen

    found: Resumed | None = ranks.from_first(ranks.all_agree(find))
    return found


def _knowledge_parts(config: Config, opened: RunData, engine: DeepSpeedEngine, ranks: Ranks) -> list[Component]:
    """Build the parts that the settings ask for; routing comes behind what it looks up in."""
    annotator, info = opened.prepared.annotator, opened.prepared.info
    if annotator is None:
        return []
    knowledge = Knowledge(config, annotator, info, engine, opened.steps.order.epoch_samples, ranks)
    return [knowledge, *([Routing(config, engine, knowledge, ranks)] if config.routes else [])]


def _evaluation(
    config: Config, opened: RunData, engine: DeepSpeedEngine, parts: list[Component], ranks: Ranks
) -> list[Component]:
    if (held_out := opened.held_out) is None:
        return []
    knowledge = next((part for part in parts if isinstance(part, Knowledge)), None)
    return [HeldOutLosses(config, held_out, engine, knowledge, _loss_weights(config, opened), ranks)]


def _restore(
    config: Config,
    run: Path,
    opened: RunData,
    resumed: Resumed | None,
    engine: DeepSpeedEngine,
    components: list[Component],
    ranks: Ranks,
) -> int:
    """Start engine and components, or restore them from the checkpoint; return the steps done."""
    if resumed is None:
        for component in components:
            component.start()
        return 0
    path, info = resumed
    load(engine, path, info, ranks)
    for component in components:
        ranks.all_agree(lambda part=component: part.load(path, info))  # type: ignore[misc]
    if info.order != reading_position(config, opened.steps, info.step):
        raise UserError(f"{path}: its reading position is not that of step {info.step}; use another --out")
    if info.step > (last := config.trainer.max_steps):
        raise UserError(f"trainer.max_steps: is {last}, {run} is at step {info.step} already")
    return info.step


def _loss_weights(config: Config, opened: RunData) -> dict[str, float]:
    """Weigh the objectives, "mlm" first; it gets the least that any of the others leaves it."""
    others = opened.objectives.values()
    mlm = min((objective.mlm_weight(config) for objective in others), default=1.0)
    return {"mlm": mlm} | {objective.name: objective.weight(config) for objective in others}


def _mlflow_key(run: Path, resumed: Resumed | None) -> str:
    """Return the key of the MLflow run to go on with; a branch of another run's checkpoint is a run of its own."""
    if resumed is None or resumed[0].parent != checkpoints_folder(run):
        return ""
    return resumed[1].mlflow


def _parameters(
    opened: RunData, fingerprint: str, engine: DeepSpeedEngine, components: list[Component], ranks: Ranks
) -> dict[str, object]:
    """Collect what the configuration does not say of the run."""
    found: dict[str, object] = {
        "dataset.place": opened.steps.reader.storage.place,
        "dataset.fingerprint": fingerprint,
        "world_size": ranks.world_size,
        "zero_stage": engine.zero_optimization_stage(),
    }
    found |= {f"versions.{name}": version for name, version in versions().items()}
    for component in components:
        found |= component.parameters()
    return found
