"""Micro-batches: which sequences a rank reads in a step, packed, with their masks."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.keyed_random import keyed_uniform
from trelm_ds.shards import SampleOrder, ShardReader

_CHOICE, _REPLACEMENT, _RANDOM_TOKEN = 11, 12, 13  # set the three draws' keys apart


class Batch(NamedTuple):
    """B packed sequences of T tokens in all; M of them are to be predicted.

    Attributes:
        input_ids: int64 [T], masks in place.
        cu_seqlens: int32 [B + 1], where each sequence starts.
        max_seqlen: tokens of the longest sequence.
        positions: int64 [M], rows of T to predict.
        labels: int64 [M], the true tokens.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    positions: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        moved = (item.to(device) if isinstance(item, torch.Tensor) else item for item in self)
        return Batch(*moved)  # type: ignore[arg-type]  # the types stay as they are


@dataclass(frozen=True)
class Masker:
    """BERT's masking (SPEC 4), every draw keyed by (seed, epoch, sample id, place): the same on any rank.

    Args:
        config: shares.
        info: of the tokenizer.
        word_starts: bool [V], whether a token begins a word.
        seed: of the run's masks.
    """

    config: MaskingConfig
    info: TokenizerInfo
    word_starts: np.ndarray
    seed: int

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """The tokens that are not special."""
        return np.setdiff1d(np.arange(self.info.vocab_size), self.info.special_ids)

    def __call__(
        self, tokens: np.ndarray, lengths: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Chooses tokens and replaces them.

        Args:
            tokens: int64 [T], packed.
            lengths: int [B], tokens of each sequence.
            epochs, sample_ids: int [B].

        Returns:
            the tokens with masks in place [T], and the chosen rows [M] in ascending order.
        """
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        place = np.arange(len(tokens)) - starts
        epoch, sample = np.repeat(epochs, lengths), np.repeat(sample_ids, lengths)
        special = np.isin(tokens, self.info.special_ids)
        special &= tokens != self.info.unk  # an unknown word is a word

        begins = self.word_starts[tokens] | special | (place <= 1) if self.config.whole_word else np.ones_like(special)
        first_of_word = np.maximum.accumulate(np.where(begins, np.arange(len(tokens)), 0))
        draw = keyed_uniform(self.seed, _CHOICE, epoch, sample, place[first_of_word])
        chosen = np.flatnonzero((draw < self.config.probability) & ~special)

        keys = epoch[chosen], sample[chosen], place[chosen]
        kind = keyed_uniform(self.seed, _REPLACEMENT, *keys)
        drawn = keyed_uniform(self.seed, _RANDOM_TOKEN, *keys) * len(self._ordinary)
        random_tokens = self._ordinary[drawn.astype(np.int64)]
        masked = tokens.copy()
        shown_as_mask = kind < self.config.mask_share
        shown_as_random = ~shown_as_mask & (kind < self.config.mask_share + self.config.random_share)
        masked[chosen[shown_as_mask]] = self.info.mask
        masked[chosen[shown_as_random]] = random_tokens[shown_as_random]
        return masked, chosen


class StepReader:
    """The micro-batches of each optimizer step for one rank; the next step is read in the background.

    Step s holds the run's positions [s * G, (s + 1) * G) with G = global batch size, whatever the number of ranks.

    Args:
        reader: the dataset.
        order: of its samples.
        masker: chooses the tokens to predict.
        global_batch_size: G.
        micro_batch_size: sequences per micro-batch and rank.
        rank, world_size: of the data-parallel group.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: SampleOrder,
        masker: Masker,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert global_batch_size % (micro_batch_size * world_size) == 0
        self._reader, self._order, self._masker = reader, order, masker
        self._global, self._micro, self._rank, self._world = global_batch_size, micro_batch_size, rank, world_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def read(self, step: int) -> list[Batch]:
        """The rank's micro-batches of step `step`, in the order of accumulation."""
        ready = self._next is not None and self._next[0] == step
        batches = self._next[1].result() if self._next is not None and ready else self._build_step(step)
        self._next = (step + 1, self._thread.submit(self._build_step, step + 1))
        return batches

    def close(self) -> None:
        """Ends the background reading."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _build_step(self, step: int) -> list[Batch]:
        epochs, ids = self._order.samples(step * self._global, self._global)
        shape = (-1, self._world, self._micro)
        pairs = zip(epochs.reshape(shape)[:, self._rank], ids.reshape(shape)[:, self._rank], strict=True)
        return [self._build(*pair) for pair in pairs]

    def _build(self, epochs: np.ndarray, sample_ids: np.ndarray) -> Batch:
        sequences = [self._reader.sequence(int(sample)).tokens for sample in sample_ids]
        lengths = np.array([len(tokens) for tokens in sequences])
        tokens = np.concatenate(sequences).astype(np.int64)
        masked, chosen = self._masker(tokens, lengths, epochs, sample_ids)
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Batch(
            torch.from_numpy(masked),
            torch.from_numpy(cu_seqlens),
            int(lengths.max()),
            torch.from_numpy(chosen),
            torch.from_numpy(tokens[chosen]),
        )
