"""Opens a run's dataset: its order, masks, knowledge, and what the objectives add to batches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trelm_ds import log
from trelm_ds.batches import KNOWLEDGE_FILES, Annotator, Masker, StepDataset
from trelm_ds.config import Config
from trelm_ds.corpus import (
    TOKENIZER_FOLDER,
    TokenizerInfo,
    describe,
    inverse_marker,
    load_tokenizer,
    word_starts,
)
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.objectives import OBJECTIVES, Objective, PreparedDataset
from trelm_ds.shards import (
    BLOCK_SEQUENCES,
    SampleOrder,
    ShardReader,
    Storage,
    Substitution,
    check_files,
    open_storage,
)


class RunData(NamedTuple):
    """A run's dataset, opened.

    Attributes:
        steps: what this rank reads.
        prepared: what the objectives know of it.
        objectives: the active ones, by name.
        tokenizer: folder.
    """

    steps: StepDataset
    prepared: PreparedDataset
    objectives: dict[str, Objective]
    tokenizer: Path


def open_dataset(config: Config, data: str, ranks: Ranks) -> RunData:
    """Open the dataset `data`, a folder or an fsspec URL.

    Raises:
        UserError: dataset and settings do not fit together.
    """
    loader, batch_size = config.loader, config.trainer.global_batch_size
    storage = open_storage(data, Path(loader.cache_dir), loader.cache_gb)
    reader = ShardReader(storage, loader.window_blocks + batch_size // BLOCK_SEQUENCES + 8)
    _check_fit(config, data, reader)
    tokenizer_folder = storage.folder / TOKENIZER_FOLDER
    tokenizer = load_tokenizer(tokenizer_folder)
    info, starts = describe(tokenizer), word_starts(tokenizer)
    if info != TokenizerInfo.of(reader.manifest):
        raise UserError(f"{tokenizer_folder}: not the tokenizer that made this dataset; run `trelm prepare`")
    annotator = None
    if config.has_knowledge:
        _check_knowledge_files(storage, reader, ranks)
        annotator = Annotator(storage.folder, config, info, starts, inverse_marker(tokenizer))
    prepared = PreparedDataset(
        folder=storage.folder, info=info, max_length=reader.manifest.max_length, annotator=annotator
    )
    objectives = {objective.name: objective for objective in OBJECTIVES if objective.active(config, prepared)}
    if objectives and annotator is None:
        _check_knowledge_files(storage, reader, ranks)
    collators = [objective.collator(config, prepared) for objective in objectives.values()]
    steps = StepDataset(
        reader=reader,
        order=SampleOrder(
            reader.block_sizes, loader.seed, loader.window_blocks, batch_size if loader.tail == "drop" else 1
        ),
        masker=Masker(config.masking, info, starts, loader.seed, config.trainer.max_steps),
        substitution=Substitution(reader, loader.seed, loader.max_corrupted),
        global_batch_size=batch_size,
        micro_batch_tokens=config.trainer.micro_batch_tokens,
        rank=ranks.rank,
        world_size=ranks.world_size,
        annotator=annotator,
        collators=[collator for collator in collators if collator is not None],
    )
    return RunData(steps=steps, prepared=prepared, objectives=objectives, tokenizer=tokenizer_folder)


def _check_fit(config: Config, data: str, reader: ShardReader) -> None:
    n_sequences, batch_size = reader.manifest.n_sequences, config.trainer.global_batch_size
    if config.loader.tail == "drop" and n_sequences < batch_size:
        raise UserError(
            f'loader.tail: "drop" leaves nothing of {n_sequences} sequences, fewer than '
            f'trainer.global_batch_size {batch_size}; use "wrap" or a smaller batch'
        )
    if "://" in data and config.selection.importance == "required":
        raise UserError(
            "selection.importance: is required, but scores are not read from behind a URL; copy the dataset into a "
            "folder"
        )


def _check_knowledge_files(storage: Storage, reader: ShardReader, ranks: Ranks) -> None:
    """Check the files of knowledge, once on each node."""
    if ranks.local_rank == 0:
        check_files(storage.folder, reader.manifest, KNOWLEDGE_FILES)


def warn_of_idle_settings(config: Config, annotator: Annotator | None) -> None:
    """Warn of knowledge settings that have no effect in this run."""
    if config.routing.enabled and not config.assesses:
        log.warning_rank0("routing.enabled: is ignored, no fact is asked that neurons could be found by")
    if config.selection.strategy == "none":
        if config.injection.file is not None:
            log.warning_rank0(f"injection.source: {config.injection.source} is ignored, selection.strategy is none")
        if config.cka.decoder != "none":
            log.warning_rank0(f"cka.decoder: {config.cka.decoder} is ignored, selection.strategy is none")
    elif annotator is None or not annotator.index.chooses:
        what = f"selection.strategy: {config.selection.strategy} chooses none of the dataset's entities"
        log.warning_rank0(f"{what}: none has a triple and the frequency; nothing is injected or asked for")
