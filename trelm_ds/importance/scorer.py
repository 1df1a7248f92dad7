"""Eq. 1 on packed batches: how much a sentence changes when a mention is masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trelm_ds.corpus import TokenizerInfo
from trelm_ds.model import Encoder

_CHUNK = 4096  # mentions whose h_o are held at a time


def _ignore(scored: int) -> None:
    """Nobody watches."""


class _Documents(NamedTuple):
    """N sequences of a packed corpus, in each of which the tokens [first, last) become one mask.

    A sequence that stays as it is has its mask behind its end: first = length, last = length + 1.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document after the replacement."""
        return self.lengths - (self.last - self.first) + 1

    def take(self, index: np.ndarray) -> _Documents:
        return _Documents(*(part[index] for part in self))


class MentionScorer:
    """Cosine between a sentence's representation with a mention and without it, by a frozen backbone.

    `h_o` is the mean of the last-layer states over the non-special tokens outside the mention; `h_rep` is the mean over
    the same tokens after the mention's span was replaced by one mask token. `SI = 1 / cos` (Eq. 1). Other mentions of
    the same entity in the sentence stay. The unknown token counts as a word.

    Args:
        encoder: put into eval mode and moved to `device`; computes in its own precision.
        info: of the corpus's tokenizer.
        device: where to compute.
        batch_tokens: tokens of a batch at most, padding of the attention included; a longer sequence goes alone.
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
        """Scores mentions.

        Args:
            tokens: int [T], packed sequences with their special tokens.
            lengths: int [B], tokens of each sequence.
            mentions: int [M, 3 or more]: sequence, first token, last token + 1 within the sequence.
            done: called with the number of mentions scored since the last call.

        Returns:
            float64 [M]; NaN where nothing but special tokens lies outside the mention.
        """
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        sequence, first, last = (mentions[:, column].astype(np.int64) for column in range(3))
        ordinary = np.concatenate([[0], np.cumsum(~self._special[tokens])])
        begin, end = starts[sequence], starts[sequence] + lengths[sequence]
        outside = ordinary[end] - ordinary[begin] - (ordinary[begin + last] - ordinary[begin + first])
        result = np.full(len(mentions), np.nan)
        scorable = np.flatnonzero(outside > 0)
        # Longest first: batches of near-equal lengths, and what does not fit into memory fails at once.
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
        """Means over the ordinary tokens of document `owner[i]` outside [first[i], last[i]): float64 [M, D]."""
        means = torch.empty(len(owner), self._encoder.config.hidden_size, dtype=torch.float64, device=self._device)
        order = np.argsort(-documents.sizes, kind="stable")
        of_document = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[of_document], np.arange(len(documents.starts) + 1))
        for batch in _batches(documents.sizes[order], self._budget):
            members = order[batch]
            packed, sizes = self._pack(tokens, documents.take(members))
            cu_seqlens = np.concatenate([[0], np.cumsum(sizes)])
            mine = [of_document[bounds[document] : bounds[document + 1]] for document in members]
            asked = np.concatenate(mine)
            place = np.repeat(np.arange(len(members)), [len(part) for part in mine])
            rows, offsets = self._outside_rows(packed, cu_seqlens[place], sizes[place], first[asked], last[asked])
            states = self._encoder(
                torch.from_numpy(packed).to(self._device),
                torch.from_numpy(cu_seqlens.astype(np.int32)).to(self._device),
                int(sizes.max()),
            )
            bags = torch.from_numpy(rows).to(self._device), torch.from_numpy(offsets).to(self._device)
            mean = F.embedding_bag(bags[0], states.float(), bags[1], mode="mean")
            means[torch.from_numpy(asked).to(self._device)] = mean.double()
            done(len(asked))
        return means

    def _pack(self, tokens: np.ndarray, documents: _Documents) -> tuple[np.ndarray, np.ndarray]:
        """The documents' tokens with their masks in place, int64 [T], and their sizes [N]."""
        sizes = documents.sizes
        owner, place = _ragged(sizes)
        cut, width = documents.first[owner], (documents.last - documents.first)[owner]
        source = documents.starts[owner] + place + np.where(place > cut, width - 1, 0)
        return np.where(place == cut, self._mask, tokens[source].astype(np.int64)), sizes

    def _outside_rows(
        self, packed: np.ndarray, starts: np.ndarray, sizes: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `packed` that each mention's mean takes, one mention after another, and where each one's begin."""
        owner, place = _ragged(sizes)
        rows = starts[owner] + place
        kept = ~self._special[packed[rows]] & ((place < first[owner]) | (place >= last[owner]))
        counts = np.bincount(owner[kept], minlength=len(sizes))
        return rows[kept], np.cumsum(counts) - counts


def _ragged(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element of groups of these sizes: its group, and its place in the group."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]


def _chunks(order: np.ndarray, sequence: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts `order` into pieces of about `_CHUNK` mentions between sequences, so that each is encoded once."""
    owner = sequence[order]
    begins = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]])) if len(order) else np.zeros(0, int)
    at = 0
    while at < len(order):
        later = begins[np.searchsorted(begins, at + _CHUNK) :]
        end = int(later[0]) if len(later) else len(order)
        yield order[at:end]
        at = end


def _batches(sizes: np.ndarray, budget: int) -> Iterator[slice]:
    """Runs of documents, sizes [N] descending, of which each pads to at most `budget` tokens."""
    at = 0
    while at < len(sizes):
        end = at + max(1, budget // int(sizes[at]))
        yield slice(at, min(end, len(sizes)))
        at = end
