"""What is traced without values against what real passes keep and compute."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_knowledge import VARIANTS
from tests.training.test_routing import config
from trelm_ds.config import CkaConfig, Config, MemoryConfig, RoutingConfig, SelectionConfig
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, Work, training_flops
from trelm_ds.planning.hardware import GPUS
from trelm_ds.planning.model import planned_model, traced
from trelm_ds.planning.samples import Sample, made_up_sample, open_for_planning, real_sample
from trelm_ds.planning.trace import Between, trace
from trelm_ds.training import RunData


def plain() -> Config:
    off = {"selection": SelectionConfig(strategy="none"), "memory": MemoryConfig(enabled=False)}
    return replace(config(), cka=CkaConfig(decoder="none"), routing=RoutingConfig(enabled=False), **off)


def opened(settings: Config, dataset: Path) -> tuple[RunData, EncoderConfig, Sample]:
    data = open_for_planning(settings, str(dataset))
    info = data.prepared.info
    sizes = EncoderConfig.from_settings(settings.model, info.vocab_size, info.pad)
    return data, sizes, real_sample(settings, data, settings.trainer.micro_batch_tokens, sizes.hidden_size)


def saved_for_real(model: MaskedLanguageModel, sample: Sample) -> int:
    """Count what autograd keeps for the backward pass when a pass is computed, without parameters, buffers, inputs."""
    given = [*model.parameters(), *model.buffers()]
    given += [leaf for leaf in torch.utils._pytree.tree_leaves(sample[:2]) if isinstance(leaf, torch.Tensor)]
    known, found = {one.untyped_storage()._cdata for one in given}, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, found.pop, storage._cdata, None)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = list(model(sample.batch, sample.tables).losses.values())
    total = sum(found.values())
    assert losses  # without which all would have gone
    return total


SETTINGS = {
    "plain": plain(),
    "routed": config(),
    "all coordinates": config(routing={"path": "full"}),
    "upper layers only": config(routing={"trainable": "ffn_only", "top_layers": 1}),
    "compact": config(routing={"compact": True}),
    "mention": VARIANTS["mention"](config()),
    "product": VARIANTS["product"](config()),
}


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_saved_is_that_of_a_real_pass(name: str, recomputed: bool, tiny_dataset: Path) -> None:
    """To the byte."""
    settings = SETTINGS[name]
    settings = replace(settings, model=replace(settings.model, activation_checkpointing=recomputed))
    data, sizes, sample = opened(settings, tiny_dataset)
    planned, _ = traced(settings, sizes, data, sample, on_gpu=False)
    assert planned.saved == saved_for_real(planned_model(settings, sizes, data).train(), sample) > 0


def test_the_life_of_tensors_is_that_of_a_real_pass(tiny_dataset: Path) -> None:
    settings = config()
    data, sizes, sample = opened(settings, tiny_dataset)
    planned, parameters = traced(settings, sizes, data, sample, on_gpu=False)
    computed = trace(planned_model(settings, sizes, data).train(), sample.batch, sample.tables)
    assert planned.live.max() == pytest.approx(computed.live.max(), rel=0.001)
    assert planned.gradients.max() == computed.gradients.max() <= 4 * parameters.trained
    assert planned.peak(lambda finished, _: finished) >= planned.live.max() > planned.saved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flops_are_those_of_the_matrix_products(precision: str) -> None:
    settings = replace(plain(), trainer=replace(plain().trainer, precision=precision))
    sizes = EncoderConfig.from_settings(settings.model, 300, 0)
    sample = made_up_sample(settings, 512, sizes)
    found, _ = traced(settings, sizes, None, sample)
    work = Work.of(sample.batch)
    # Attention's scores are computed again in the backward pass.
    again = 2 * work.pairs * sizes.hidden_size * sizes.num_hidden_layers
    assert found.flops.sum() == pytest.approx(training_flops(sizes, work) + again, rel=1e-6)


def test_recomputing_keeps_less_and_computes_more() -> None:
    settings, found = plain(), {}
    sizes = EncoderConfig.from_settings(settings.model, 300, 0)
    for recomputed in (False, True):
        chosen = replace(settings, model=replace(settings.model, activation_checkpointing=recomputed))
        found[recomputed], _ = traced(chosen, sizes, None, made_up_sample(chosen, 512, sizes))
    assert found[True].saved < found[False].saved / 2
    assert 1.2 < found[True].flops.sum() / found[False].flops.sum() < 4 / 3


def test_on_a_gpu_attention_keeps_no_padding_and_no_probabilities(tiny_dataset: Path) -> None:
    """In half precision; documents of unequal lengths and dropout make the difference."""
    settings = config(precision="bf16")
    settings = replace(settings, model=replace(settings.model, attention_probs_dropout_prob=0.1))
    data, sizes, sample = opened(settings, tiny_dataset)
    saved = [traced(settings, sizes, data, sample, on_gpu=on_gpu)[0].saved for on_gpu in (True, False)]
    assert saved[0] < saved[1]


def test_time_is_that_of_the_slower_resource() -> None:
    settings = plain()
    sizes = EncoderConfig.from_settings(settings.model, 300, 0)
    found, _ = traced(settings, sizes, None, made_up_sample(settings, 512, sizes))
    device = GPUS["h100"]._replace(launch_s=0.0, flops={"fp32": 1e13})  # so slow that the products take longer
    both = found.seconds(device, "fp32")
    computing, moving = found.flops.sum() / device.flops["fp32"], found.moved.sum() / device.bandwidth
    assert max(computing, moving) < both < computing + moving
    assert found.seconds(device._replace(launch_s=1.0), "fp32") == len(found.flops)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_between_two_sizes_all_is_on_a_line(precision: str) -> None:
    settings = replace(config(), trainer=replace(config().trainer, precision=precision))
    sizes = EncoderConfig.from_settings(settings.model, 300, 0)
    ones = [made_up_sample(settings, tokens, sizes) for tokens in (512, 1024, 4096)]
    low, middle, high = (traced(settings, sizes, None, one)[0] for one in ones)
    share = (ones[1].tokens - ones[0].tokens) / (ones[2].tokens - ones[0].tokens)
    between = Between(low, high, share)
    assert between.saved == pytest.approx(middle.saved, rel=0.005)

    def held(finished: Any, _: Any) -> Any:
        return finished

    assert 0.999 < between.peak(held) / middle.peak(held) < 1.05  # rather too much
    device = GPUS["a100-80g"]
    assert between.seconds(device, precision) == pytest.approx(middle.seconds(device, precision), rel=0.1)
