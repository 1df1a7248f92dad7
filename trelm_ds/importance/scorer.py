"""Semantic importance (Eq. 1) on packed batches: how much a sentence changes when a mention is masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.corpus import TokenizerInfo
from trelm_ds.model import Encoder

_CHUNK = 4096  # mentions whose h_o are in memory at a time


def _ignore(scored: int) -> None:
    """Report no progress."""


class _Documents(NamedTuple):
    """N sequences of a packed corpus, in each of which one mask token replaces the tokens [first, last).

    For an unchanged sequence the mask lies past its end: first = length, last = length + 1.

    Attributes:
        starts: int64 [N], first token of each sequence in the corpus.
        lengths: int64 [N], tokens of each sequence before the replacement.
        first, last: int64 [N], counted within the sequence.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document after the replacement, int64 [N]."""
        return self.lengths - (self.last - self.first) + 1

    def take(self, index: np.ndarray) -> _Documents:
        """Select documents by index, int [n]."""
        return _Documents(*(part[index] for part in self))


class MentionScorer:
    """Computes the cosine between a sentence's representations with and without a mention, by a frozen backbone.

    `h_o` is the mean of the last-layer states over the non-special tokens outside the mention; `h_rep` is the mean over
    the same tokens after one mask token has replaced the mention. `SI = 1 / cos` (Eq. 1). Other mentions of the same
    entity in the sentence stay. The unknown token counts as a word.

    Args:
        encoder: moved to `device` and put into eval mode; computes in its own precision.
        info: the corpus's tokenizer.
        device: where to compute.
        batch_tokens: maximum number of tokens per batch, attention padding included; a longer sequence is a batch of
            its own.
    """

    def __init__(self, encoder: Encoder, info: TokenizerInfo, device: torch.device, batch_tokens: int) -> None:
        self._encoder, self._device, self._budget = encoder.to(device).eval(), device, batch_tokens
        self._mask = info.mask
        self._special = np.zeros(info.vocab_size, dtype=bool)
        self._special[[token for token in info.special_ids if token != info.unk]] = True

    @torch.inference_mode()
    def cosines(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        mentions: np.ndarray,
        done: Callable[[int], None] = _ignore,
    ) -> np.ndarray:
        """Score mentions.

        Args:
            tokens: int [T], packed sequences with their special tokens.
            lengths: int [B], tokens of each sequence.
            mentions: int [M, 3 or more]: sequence, first token, last token + 1 within the sequence.
            done: called with the number of mentions scored since the last call.

        Returns:
            cosines float64 [M]; NaN if only special tokens lie outside the mention.
        """
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        sequence, first, last = (mentions[:, column].astype(np.int64) for column in range(3))
        ordinary = np.concatenate([[0], np.cumsum(~self._special[tokens])])
        begin, end = starts[sequence], starts[sequence] + lengths[sequence]
        outside = ordinary[end] - ordinary[begin] - (ordinary[begin + last] - ordinary[begin + first])
        result = np.full(len(mentions), np.nan)
        scorable = np.flatnonzero(outside > 0)
        # Longest first: batches have near-equal lengths, and running out of memory happens at the start.
        order = scorable[np.lexsort((first[scorable], sequence[scorable], -lengths[sequence[scorable]]))]
        for chunk in _chunks(order, sequence):
            owners, owner = np.unique(sequence[chunk], return_inverse=True)
            whole = np.asarray(lengths[owners], dtype=np.int64)
            originals = _Documents(starts[owners], whole, whole, whole + 1)
            spans = first[chunk], last[chunk]
            masked = _Documents(starts[sequence[chunk]], lengths[sequence[chunk]].astype(np.int64), *spans)
            h_o = self._outside_means(tokens, originals, owner, *spans)
            one_mask = spans[0], spans[0] + 1
            h_rep = self._outside_means(tokens, masked, np.arange(len(chunk)), *one_mask, done)
            dot = (h_o * h_rep).sum(-1)
            result[chunk] = (dot / (h_o.norm(dim=-1) * h_rep.norm(dim=-1))).cpu().numpy()
        return result

    def _outside_means(
        self,
        tokens: np.ndarray,
        documents: _Documents,
        owner: np.ndarray,
        first: np.ndarray,
        last: np.ndarray,
        done: Callable[[int], None] = _ignore,
    ) -> Tensor:
        """Average the states of document `owner[i]` over its ordinary tokens outside [first[i], last[i]).

        Returns:
            float64 [M, D].
        """
        means = torch.empty(len(owner), self._encoder.config.hidden_size, dtype=torch.float64, device=self._device)
        order = np.argsort(-documents.sizes, kind="stable")
        of_document = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[of_document], np.arange(len(documents.starts) + 1))
        for batch in _batches(documents.sizes[order], self._budget):
            members = order[batch]
            packed, sizes = self._pack(tokens, documents.take(members))
            cu_seqlens = np.concatenate([[0], np.cumsum(sizes)])
            mine = [of_document[bounds[document] : bounds[document + 1]] for document in members]
            wanted = np.concatenate(mine)
            place = np.repeat(np.arange(len(members)), [len(part) for part in mine])
            rows, offsets = self._outside_rows(packed, cu_seqlens[place], sizes[place], first[wanted], last[wanted])
            states = self._encoder(
                torch.from_numpy(packed).to(self._device),
                torch.from_numpy(cu_seqlens.astype(np.int32)).to(self._device),
                int(sizes.max()),
            )
            bags = torch.from_numpy(rows).to(self._device), torch.from_numpy(offsets).to(self._device)
            mean = F.embedding_bag(bags[0], states.float(), bags[1], mode="mean")
            means[torch.from_numpy(wanted).to(self._device)] = mean.double()
            done(len(wanted))
        return means

    def _pack(self, tokens: np.ndarray, documents: _Documents) -> tuple[np.ndarray, np.ndarray]:
        """Build the documents with their masks: tokens int64 [T] and sizes [N]."""
        sizes = documents.sizes
        owner, place = _ragged(sizes)
        cut, width = documents.first[owner], (documents.last - documents.first)[owner]
        source = documents.starts[owner] + place + np.where(place > cut, width - 1, 0)
        return np.where(place == cut, self._mask, tokens[source].astype(np.int64)), sizes

    def _outside_rows(
        self, packed: np.ndarray, starts: np.ndarray, sizes: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of `packed` to average for each mention, concatenated, and where each mention's begin."""
        owner, place = _ragged(sizes)
        rows = starts[owner] + place
        kept = ~self._special[packed[rows]] & ((place < first[owner]) | (place >= last[owner]))
        counts = np.bincount(owner[kept], minlength=len(sizes))
        return rows[kept], np.cumsum(counts) - counts


def _ragged(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each element of groups with these sizes its group and its index within the group."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]


def _chunks(order: np.ndarray, sequence: np.ndarray) -> Iterator[np.ndarray]:
    """Split `order` into chunks of about `_CHUNK` mentions at sequence boundaries, so each sequence is encoded once."""
    owner = sequence[order]
    begins = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]])) if len(order) else np.zeros(0, int)
    at = 0
    while at < len(order):
        later = begins[np.searchsorted(begins, at + _CHUNK) :]
        end = int(later[0]) if len(later) else len(order)
        yield order[at:end]
        at = end


def _batches(sizes: np.ndarray, budget: int) -> Iterator[slice]:
    """Yield runs of documents, sizes [N] descending, that each pad to at most `budget` tokens."""
    at = 0
    while at < len(sizes):
        end = at + max(1, budget // int(sizes[at]))
        yield slice(at, min(end, len(sizes)))
        at = end
