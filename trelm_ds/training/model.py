"""The model that a run starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from trelm_ds import log
from trelm_ds.config import Config, ModelConfig
from trelm_ds.corpus import check_vocabulary
from trelm_ds.distributed import TensorGroup
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream, keyed_bits
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, know_linear, load_pretrained, make_tensor_parallel
from trelm_ds.routing import first_layer, first_neurons, path_size
from trelm_ds.training.dataset import RunData


def build_model(config: Config, data: RunData, tensor: TensorGroup | None = None) -> MaskedLanguageModel:
    """Build the encoder of `model.init_from`, or a fresh one whose weights depend on `trainer.seed` only.

    Args:
        tensor: the ranks among which it is shared out; this one gets its part.

    Raises:
        UserError: the folder's vocabulary is not the dataset's, the sequences are longer than the model's positions, or
            the model cannot be cut evenly.
    """
    settings, info, max_length = config.model, data.prepared.info, data.prepared.max_length
    torch.manual_seed(int(keyed_bits(config.trainer.seed, Stream.WEIGHTS)) >> 1)
    if settings.init_from is None:
        sizes = EncoderConfig.from_settings(settings, info.vocab_size, info.pad)
        model = MaskedLanguageModel(sizes, activation_checkpointing=settings.activation_checkpointing)
        if tensor is not None:
            make_tensor_parallel(model, tensor.group, settings.sequence_parallel)
    else:
        folder = Path(settings.init_from)
        group = None if tensor is None else tensor.group
        model = load_pretrained(folder, settings.activation_checkpointing, group, settings.sequence_parallel)
        check_vocabulary("model.init_from", folder, model.config.vocab_size, info)
        _warn_of_ignored(settings, model.config, folder)
    if model.config.max_position_embeddings < max_length:
        raise UserError(
            f"model.max_position_embeddings: the model reads {model.config.max_position_embeddings} tokens, "
            f"the dataset was prepared with --max-length {max_length}; make them agree"
        )
    for name, objective in data.objectives.items():
        model.objectives[name] = objective.module(config, model.config, data.prepared)
    annotator = data.prepared.annotator
    if config.injection.projection == "trained" and annotator is not None and len(annotator.index.vector_entities):
        model.know_linear = know_linear(model.config.hidden_size)
    return model


def with_sizes(config: Config, used: EncoderConfig) -> Config:
    """Return the configuration with the encoder's sizes as they are, which a folder to start from decides."""
    sizes = {
        item.name: getattr(used, item.name) for item in dataclasses.fields(ModelConfig) if hasattr(used, item.name)
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def restrict(model: MaskedLanguageModel, config: Config) -> None:
    """Freeze what routing never updates, before the optimizer is built.

    Raises:
        UserError: more layers are asked for than there are, or compact routing would leave out no neuron.
    """
    routing = config.routing
    if not config.routes:
        return
    layers = model.encoder.blocks
    if routing.top_layers is not None and routing.top_layers > len(layers):
        raise UserError(f"routing.top_layers: is {routing.top_layers}, the model has {len(layers)} layers")
    if routing.trainable == "ffn_only":
        model.encoder.requires_grad_(False)
        model.head.requires_grad_(False)
    first, neurons = first_layer(routing, len(layers)), model.config.intermediate_size
    if (chosen := path_size(neurons, routing.density)) == neurons and routing.compact:
        raise UserError(f"routing.density: {routing.density} of {neurons} neurons is all; lower it for routing.compact")
    for number, layer in enumerate(layers):
        ffn = layer.feed_forward
        for weight in (ffn.keys, ffn.key_bias, ffn.values):
            weight.requires_grad_(number >= first)
        if routing.compact and number >= first:
            ffn.make_compact(first_neurons(neurons, chosen))


def _warn_of_ignored(settings: ModelConfig, used: EncoderConfig, folder: Path) -> None:
    """Warn of sizes in the settings that the folder's config.json overrules."""
    for item in dataclasses.fields(ModelConfig):
        value = getattr(settings, item.name)
        if hasattr(used, item.name) and value not in (item.default, getattr(used, item.name)):
            decides = f"{folder}/config.json decides: {getattr(used, item.name)}"
            log.warning_rank0(f"model.{item.name}: {value} is ignored, {decides}")
