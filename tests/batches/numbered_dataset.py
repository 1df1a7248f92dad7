"""A dataset whose sequences tell their own sample id, and a loader over it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from trelm_ds.batches import Masker, StepDataset
from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.model import Batch
from trelm_ds.shards import Manifest, SampleOrder, Sequence, ShardReader, ShardWriter, Substitution

INFO = TokenizerInfo(sha256="", vocab_size=5000, pad=0, unk=1, cls=2, sep=3, mask=4)
FIRST = 10  # token of sample 0
LONGEST = 40


def write_numbered(folder: Path, count: int, block_sequences: int = 7, shard_bytes: int = 40_000) -> None:
    """`count` sequences of 4 to 40 tokens; the second token is FIRST + sample id."""
    folder.mkdir()
    writer = ShardWriter(folder, INFO.vocab_size, shard_bytes, block_sequences)
    draw = np.random.default_rng(count)
    for sample in range(count):
        tokens = draw.integers(FIRST, INFO.vocab_size, int(draw.integers(4, LONGEST + 1))).astype(np.uint32)
        tokens[0], tokens[1], tokens[-1] = INFO.cls, FIRST + sample, INFO.sep
        writer.add(Sequence(tokens, np.zeros((0, 3), dtype=np.int64)))
    Manifest(INFO.__dict__, LONGEST, {}, {}, writer.close()).save(folder)


def step_dataset(
    folder: Path,
    rank: int = 0,
    world_size: int = 1,
    *,
    batch: int = 16,
    tail: str = "wrap",
    budget: int = 120,
    max_corrupted: float = 0.0,
    masking: MaskingConfig = MaskingConfig(),  # noqa: B008
    max_steps: int = 1,
) -> StepDataset:
    reader = ShardReader(folder)
    order = SampleOrder(reader.block_sizes, 2, 3, batch if tail == "drop" else 1)
    masker = Masker(masking, INFO, np.ones(INFO.vocab_size, dtype=bool), 2, max_steps)
    substitution = Substitution(reader, 2, max_corrupted)
    return StepDataset(
        reader=reader,
        order=order,
        masker=masker,
        substitution=substitution,
        global_batch_size=batch,
        micro_batch_tokens=budget,
        rank=rank,
        world_size=world_size,
    )


def sequences(batches: list[Batch]) -> list[tuple[int, list[int], list[int]]]:
    """(sample id, tokens shown, tokens to predict) of every sequence of a rank's step."""
    found = []
    for batch in batches:
        original = batch.input_ids.clone()
        original[batch.mlm_positions] = batch.mlm_labels
        ends = batch.cu_seqlens.tolist()
        for start, end in itertools.pairwise(ends):
            labels = batch.mlm_labels[(batch.mlm_positions >= start) & (batch.mlm_positions < end)]
            found.append((int(original[start + 1]) - FIRST, batch.input_ids[start:end].tolist(), labels.tolist()))
    return found
