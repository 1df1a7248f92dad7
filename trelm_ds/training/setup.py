"""What a run starts from: the model, and the checkpoint it continues."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from trelm_ds import log
from trelm_ds.batches import KNOWLEDGE_FILES, Annotator, Masker, StepDataset
from trelm_ds.config import Config, ModelConfig
from trelm_ds.corpus import (
    TOKENIZER_FOLDER,
    TokenizerInfo,
    check_vocabulary,
    describe,
    inverse_marker,
    load_tokenizer,
    word_starts,
)
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import keyed_bits
from trelm_ds.model import EncoderConfig, EncoderLayer, MaskedLanguageModel, ProductDecoder, load_pretrained
from trelm_ds.routing import first_layer
from trelm_ds.shards import BLOCK_SEQUENCES, SampleOrder, ShardReader, Substitution, check_files, open_storage

_WEIGHTS = 22  # sets this random stream's key apart from dropout's


def open_run(config: Config, data: str, ranks: Ranks) -> tuple[StepDataset, MaskedLanguageModel]:
    """What a rank reads from disk.

    Raises:
        UserError: dataset and settings do not fit together.
    """
    settings, batch_size = config.loader, config.trainer.global_batch_size
    storage = open_storage(data, Path(settings.cache_dir), settings.cache_gb)
    tokenizer_folder = storage.folder / TOKENIZER_FOLDER
    reader = ShardReader(storage, settings.window_blocks + batch_size // BLOCK_SEQUENCES + 8)
    if settings.tail == "drop" and reader.manifest.n_sequences < batch_size:
        raise UserError(
            f'loader.tail: "drop" leaves nothing of {reader.manifest.n_sequences} sequences, fewer than '
            f'trainer.global_batch_size {batch_size}; use "wrap" or a smaller batch'
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    info = describe(tokenizer)
    if info != TokenizerInfo(**reader.manifest.tokenizer):
        raise UserError(f"{tokenizer_folder}: not the tokenizer that made this dataset; run `trelm prepare`")
    if "://" in data and config.selection.importance == "required":
        raise UserError(
            "selection.importance: is required, but scores are not read from behind a URL; copy the dataset into a "
            "folder"
        )
    starts, annotator = word_starts(tokenizer), None
    if config.has_knowledge:
        if ranks.local_rank == 0:
            check_files(storage.folder, reader.manifest, KNOWLEDGE_FILES)
        annotator = Annotator(storage.folder, config, info, starts, inverse_marker(tokenizer))
    steps = StepDataset(
        reader,
        SampleOrder(
            reader.block_sizes, settings.seed, settings.window_blocks, batch_size if settings.tail == "drop" else 1
        ),
        Masker(config.masking, info, starts, settings.seed),
        Substitution(reader, settings.seed, settings.max_corrupted),
        batch_size,
        config.trainer.micro_batch_tokens,
        ranks.rank,
        ranks.world_size,
        annotator,
    )
    return steps, build_model(config, info, reader.manifest.max_length)


def build_model(config: Config, info: TokenizerInfo, max_length: int) -> MaskedLanguageModel:
    """The encoder of `model.init_from`, or a fresh one whose weights depend on `trainer.seed` only.

    Raises:
        UserError: the folder's vocabulary is not the dataset's, or the sequences are longer than the model's positions.
    """
    settings = config.model
    torch.manual_seed(int(keyed_bits(config.trainer.seed, _WEIGHTS)) >> 1)
    if settings.init_from is None:
        sizes = EncoderConfig.from_settings(settings, info.vocab_size, info.pad)
        model = MaskedLanguageModel(sizes, activation_checkpointing=settings.activation_checkpointing)
    else:
        folder = Path(settings.init_from)
        model = load_pretrained(folder, activation_checkpointing=settings.activation_checkpointing)
        check_vocabulary("model.init_from", folder, model.config.vocab_size, info)
        _warn_of_ignored(settings, model.config, folder)
    if model.config.max_position_embeddings < max_length:
        raise UserError(
            f"model.max_position_embeddings: the model reads {model.config.max_position_embeddings} tokens, "
            f"the dataset was prepared with --max-length {max_length}; make them agree"
        )
    if config.assesses and config.cka.decoder == "product":
        model.decoder = ProductDecoder(model.config, config.cka.max_answer_tokens)
    return model


def with_sizes(config: Config, used: EncoderConfig) -> Config:
    """The configuration with the encoder's sizes as they are, which a folder to start from decides."""
    sizes = {
        item.name: getattr(used, item.name) for item in dataclasses.fields(ModelConfig) if hasattr(used, item.name)
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def restrict(model: MaskedLanguageModel, config: Config) -> None:
    """Freezes what routing never updates, before the optimizer is built.

    Raises:
        UserError: more layers are asked for than there are.
    """
    routing = config.routing
    if not config.routes:
        return
    layers = model.encoder.layers
    if routing.top_layers is not None and routing.top_layers > len(layers):
        raise UserError(f"routing.top_layers: is {routing.top_layers}, the model has {len(layers)} layers")
    if routing.trainable == "ffn_only":
        model.encoder.requires_grad_(False)
        model.head.requires_grad_(False)
    first = first_layer(routing, len(layers))
    for number, layer in enumerate(layers):
        assert isinstance(layer, EncoderLayer)
        memory = layer.feed_forward
        for weight in (memory.keys, memory.key_bias, memory.values):
            weight.requires_grad_(number >= first)


def warn_of_nothing(config: Config, annotator: Annotator | None) -> None:
    """Says so where the settings ask for knowledge that the dataset or another setting cannot give."""
    if config.routing.enabled and not config.assesses:
        log.warning_rank0("routing.enabled: is ignored, no fact is asked that neurons could be found by")
    if config.selection.strategy == "none":
        if config.cka.decoder != "none":
            log.warning_rank0(f"cka.decoder: {config.cka.decoder} is ignored, selection.strategy is none")
    elif annotator is None or not annotator.index.chooses:
        what = f"selection.strategy: {config.selection.strategy} chooses none of the dataset's entities"
        log.warning_rank0(f"{what}: none has a triple and the frequency; nothing is injected or asked for")


def _warn_of_ignored(settings: ModelConfig, used: EncoderConfig, folder: Path) -> None:
    """The folder's config.json decides the sizes; say so where somebody asked for others."""
    for item in dataclasses.fields(ModelConfig):
        value = getattr(settings, item.name)
        if hasattr(used, item.name) and value not in (item.default, getattr(used, item.name)):
            decides = f"{folder}/config.json decides: {getattr(used, item.name)}"
            log.warning_rank0(f"model.{item.name}: {value} is ignored, {decides}")
