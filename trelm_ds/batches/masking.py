"""Masked language modelling: which tokens are predicted and what the model is shown in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_uniform


@dataclass(frozen=True)
class Masker:
    """BERT's masking, every draw keyed by (seed, epoch, sample id, place): the same on any rank.

    Args:
        config: shares.
        word_starts: bool [V], whether a token begins a word.
    """

    config: MaskingConfig
    info: TokenizerInfo
    word_starts: np.ndarray
    seed: int

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """The tokens that are not special."""
        return np.setdiff1d(np.arange(self.info.vocab_size), self.info.special_ids)

    @cached_property
    def _is_special(self) -> np.ndarray:
        """bool [V]: tokens that are never predicted. An unknown word is a word."""
        special = np.zeros(self.info.vocab_size, dtype=bool)
        special[[token for token in self.info.special_ids if token != self.info.unk]] = True
        return special

    def _draw(
        self, stream: Stream, epochs: np.ndarray, sample_ids: np.ndarray, owner: np.ndarray, place: np.ndarray
    ) -> np.ndarray:
        """Draw uniform numbers keyed by (seed, stream, epoch, sample id, place); `owner`: each place's sequence."""
        return keyed_uniform(place, after=keyed_bits(self.seed, stream, epochs, sample_ids)[owner])

    def __call__(
        self, tokens: np.ndarray, lengths: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose tokens and replace them.

        Args:
            tokens: int64 [T], packed.
            lengths: int [B], tokens of each sequence.
            epochs, sample_ids: int [B].

        Returns:
            the tokens with masks in place [T], and the chosen rows [M] in ascending order.
        """
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[owner]
        special = self._is_special[tokens]

        begins = self.word_starts[tokens] | special | (place <= 1) if self.config.whole_word else np.ones_like(special)
        first = np.flatnonzero(begins)  # of each word: one draw for all of its tokens
        draw = self._draw(Stream.MASKED_WORD, epochs, sample_ids, owner[first], place[first])
        chosen_words = np.repeat(draw < self.config.probability, np.diff(first, append=len(tokens)))
        chosen = np.flatnonzero(chosen_words & ~special)

        kind = self._draw(Stream.MASK_KIND, epochs, sample_ids, owner[chosen], place[chosen])
        drawn = self._draw(Stream.RANDOM_TOKEN, epochs, sample_ids, owner[chosen], place[chosen]) * len(self._ordinary)
        random_tokens = self._ordinary[drawn.astype(np.int64)]
        masked = tokens.copy()
        shown_as_mask = kind < self.config.mask_share
        shown_as_random = ~shown_as_mask & (kind < self.config.mask_share + self.config.random_share)
        masked[chosen[shown_as_mask]] = self.info.mask
        masked[chosen[shown_as_random]] = random_tokens[shown_as_random]
        return masked, chosen
