"""The model that a run would train, without values: of all ranks' ranks, the first."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from trelm_ds.config import Config
from trelm_ds.model import (
    Assessing,
    Batch,
    EncoderConfig,
    KnowledgePath,
    MaskedLanguageModel,
    StepTables,
    as_on_gpu,
    know_linear,
    make_tensor_parallel,
    map_tensors,
)
from trelm_ds.planning.parameters import Parameters
from trelm_ds.planning.samples import Sample
from trelm_ds.planning.trace import Trace, trace
from trelm_ds.routing import first_layer, path_size
from trelm_ds.training import RunData, restrict

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@contextlib.contextmanager
def imaginary_ranks(count: int) -> Iterator[None]:
    """Give this process a process group of so many ranks of which it is the only one: collectives do nothing.

    Raises:
        RuntimeError: it has one already.
    """
    if count == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def planned_model(config: Config, sizes: EncoderConfig, data: RunData | None, degree: int = 1) -> MaskedLanguageModel:
    """Build the model of a run, on the default device and in the default precision, with its knowledge paths.

    Args:
        sizes: of the encoder.
        data: the run's dataset; without one, facts are assessed by the decoder "query".
        degree: tensor parallelism, whose `imaginary_ranks` exist.

    Raises:
        UserError: the ranks cannot share the model, or routing does not fit it.
    """
    model = MaskedLanguageModel(sizes, activation_checkpointing=config.model.activation_checkpointing)
    if degree > 1:
        make_tensor_parallel(model, dist.new_group(list(range(degree))))
    if data is not None:
        for name, objective in data.objectives.items():
            model.objectives[name] = objective.module(config, sizes, data.prepared)
        annotator = data.prepared.annotator
        if config.injection.projection == "trained" and annotator is not None and len(annotator.index.vector_entities):
            model.know_linear = know_linear(sizes.hidden_size)
    elif config.assesses:
        model.objectives["cka"] = Assessing()
    restrict(model, config)
    if config.routes:
        _follow_paths(model, config)
    return model


def _follow_paths(model: MaskedLanguageModel, config: Config) -> None:
    """Give every routed layer a path of the size that it will have."""
    routing, layers = config.routing, model.encoder.blocks
    width = model.config.hidden_size
    for layer in layers[first_layer(routing, len(layers)) :]:
        neurons = layer.feed_forward
        if neurons.whole:
            continue  # a compact layer has one
        chosen = torch.arange(path_size(len(neurons.own), routing.density))
        full = (torch.ones(width, dtype=torch.bool), torch.ones(width, dtype=torch.bool), torch.zeros(2))
        neurons.path = KnowledgePath(chosen, *(full if routing.path == "full" else ()))


def traced(
    config: Config, sizes: EncoderConfig, data: RunData | None, sample: Sample, degree: int = 1, on_gpu: bool = True
) -> tuple[Trace, Parameters]:
    """Trace a micro-batch through the model of a run, and list what the first rank has of that.

    Args:
        on_gpu: attend as on a GPU; else as this machine's CPU does.

    Raises:
        UserError: as `planned_model`.
    """
    with imaginary_ranks(degree), _quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with _default_dtype(DTYPES[config.trainer.precision]):
            model = planned_model(config, sizes, data, degree).train()
        batch: Batch = map_tensors(sample.batch, mode.from_tensor)
        tables: StepTables | None = map_tensors(sample.tables, mode.from_tensor)
        with as_on_gpu() if on_gpu else contextlib.nullcontext(), _dropout_of_gpus(on_gpu):
            found = trace(model, batch, tables, attended=sample.attended)
        return found, Parameters.of(model, config.routes)


@contextlib.contextmanager
def _dropout_of_gpus(on_gpu: bool) -> Iterator[None]:
    """Drop out in one operation with a mask of bytes, as on a GPU; on a CPU torch takes three and a mask of numbers."""
    before = functional.dropout

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(input, p, training)[0] if p and training else input

    if on_gpu:
        functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what megatron-core warns of: optimizers that are not used, and a setting of real GPUs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
        yield


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
