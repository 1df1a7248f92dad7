"""Opens a run's dataset: its order, masks, knowledge, and what the objectives add to batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trelm_ds import log
from trelm_ds.batches import KNOWLEDGE_FILES, Annotator, Masker, StepDataset
from trelm_ds.config import Config, MaskingConfig
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
    HELD_OUT_TEXT,
    LENGTHS,
    Manifest,
    SampleOrder,
    ShardReader,
    Storage,
    Substitution,
    check_files,
    open_storage,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunData(NamedTuple):
    """A run's dataset, opened.

    Attributes:
        steps: what this rank reads.
        held_out: text that is not trained on, whole on every rank; None where none is asked for.
        prepared: what the objectives know of it.
        objectives: the active ones, by name.
        tokenizer: folder.
    """

    steps: StepDataset
    held_out: StepDataset | None
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
    held_out = None
    if config.trainer.eval_every:
        held_out = _open_held_out(_for_evaluation(config), data, storage, reader.manifest, tokenizer, objectives, ranks)
    return RunData(steps=steps, held_out=held_out, prepared=prepared, objectives=objectives, tokenizer=tokenizer_folder)


def _for_evaluation(config: Config) -> Config:
    """Change what makes runs score different questions: BERT's masks, one seed, no choice of mentions by scores."""
    return replace(
        config,
        masking=MaskingConfig(),
        selection=replace(config.selection, importance="none"),  # scores are of the sequences that are trained on
        loader=replace(config.loader, seed=0),
        routing=replace(config.routing, enabled=False),
    )


def _open_held_out(
    config: Config,
    data: str,
    storage: Storage,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    objectives: dict[str, Objective],
    ranks: Ranks,
) -> StepDataset:
    """Open the text held out, with knowledge and objectives as in training.

    Raises:
        UserError: the dataset has none, or its files are damaged.
    """
    folder = storage.folder / HELD_OUT_TEXT
    if f"{HELD_OUT_TEXT}/{LENGTHS}" not in manifest.files:
        raise UserError(
            f"trainer.eval_every: {data} has no held-out text; make it with `trelm prepare --held-out 0.005`, or set 0"
        )
    if ranks.local_rank == 0:
        check_files(storage.folder, manifest, (HELD_OUT_TEXT,))
    reader, info, starts = ShardReader(folder), describe(tokenizer), word_starts(tokenizer)
    annotator = None
    if config.has_knowledge:
        annotator = Annotator(storage.folder, config, info, starts, inverse_marker(tokenizer))
    prepared = PreparedDataset(folder=storage.folder, info=info, max_length=manifest.max_length, annotator=annotator)
    collators = [objective.collator(config, prepared) for objective in objectives.values()]
    return StepDataset(
        reader=reader,
        order=SampleOrder(reader.block_sizes, config.loader.seed, len(reader.block_sizes)),
        masker=Masker(config.masking, info, starts, config.loader.seed),
        substitution=Substitution(reader, config.loader.seed, 0.0),
        global_batch_size=1,
        micro_batch_tokens=config.trainer.micro_batch_tokens,
        rank=0,
        world_size=1,
        annotator=annotator,
        collators=[collator for collator in collators if collator is not None],
    )


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
    if config.routing.compact and not config.routing.enabled:
        log.warning_rank0("routing.compact: is ignored, routing.enabled is false")
    if config.selection.strategy == "none":
        if config.injection.file is not None:
            log.warning_rank0(f"injection.source: {config.injection.source} is ignored, selection.strategy is none")
        if config.cka.decoder != "none":
            log.warning_rank0(f"cka.decoder: {config.cka.decoder} is ignored, selection.strategy is none")
    elif annotator is None or not annotator.index.chooses:
        what = f"selection.strategy: {config.selection.strategy} chooses none of the dataset's entities"
        log.warning_rank0(f"{what}: none has a triple and the frequency; nothing is injected or asked for")
