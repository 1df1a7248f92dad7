"""A micro-batch: packed sequences with their masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.keyed_random import keyed_uniform

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
        """The batch on `device`; from pinned memory the copy runs beside the computation."""
        moved = (item.to(device, non_blocking=True) if isinstance(item, torch.Tensor) else item for item in self)
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
