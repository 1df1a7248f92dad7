"""Masked language modelling: which tokens are predicted and what the model is shown in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trelm_ds.config import MaskingConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_uniform


def mask_rate(config: MaskingConfig, steps_done: int, max_steps: int) -> float:
    """Return the share of tokens that the step after `steps_done` predicts; the last of `max_steps` has the pair's end.

    A word is masked where its draw lies below the rate, so a lower rate masks some of the words that a higher one does.
    """
    if not isinstance(config.probability, tuple):
        return config.probability
    first, last = config.probability
    return first + (last - first) * min(1.0, steps_done / max(1, max_steps - 1))


@dataclass(frozen=True)
class Masker:
    """BERT's masking, every draw keyed by (seed, epoch, sample id, place): the same on any rank.

    Args:
        config: shares.
        word_starts: bool [V], whether a token begins a word.
        max_steps: optimizer steps of the run, over which the rate may change.
    """

    config: MaskingConfig
    info: TokenizerInfo
    word_starts: np.ndarray
    seed: int
    max_steps: int = 1

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
        self, tokens: np.ndarray, lengths: np.ndarray, epochs: np.ndarray, sample_ids: np.ndarray, steps_done: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose tokens and replace them.

        Args:
            tokens: int64 [T], packed.
            lengths: int [B], tokens of each sequence.
            epochs, sample_ids: int [B].
            steps_done: before the step that they are read for; it decides the rate.

        Returns:
            the tokens with masks in place [T], and the chosen rows [M] in ascending order.
        """
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[owner]
        special = self._is_special[tokens]

        begins = self.word_starts[tokens] | special | (place <= 1) if self.config.whole_word else np.ones_like(special)
        first = np.flatnonzero(begins)  # of each word: one draw for all of its tokens
        draw = self._draw(Stream.MASKED_WORD, epochs, sample_ids, owner[first], place[first])
        rate = mask_rate(self.config, steps_done, self.max_steps)
        chosen_words = np.repeat(draw < rate, np.diff(first, append=len(tokens)))
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
