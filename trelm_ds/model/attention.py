"""Self-attention inside each document of a packed batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.flash import flash_attention, has_flash_attention
from trelm_ds.model.shard_dropout import of_shard


class Tail(NamedTuple):
    """The last documents of a batch, where they are much shorter than the others: padded by themselves, if at all."""

    documents: int
    """how many"""
    tokens: int
    """in all of them"""
    max_seqlen: int
    """at least the longest of them"""


class Grid(NamedTuple):
    """Some neighbouring documents as rows of equal length, for kernels that know no packed ones."""

    first: int
    """rows [first, last) of T are theirs"""
    last: int
    documents: int
    """B"""
    length: int
    """S, at least the longest of them"""
    slots: Tensor | None
    """[last - first] int64: place of each token in the grid [B * S]; None when every document fills its row"""
    key_mask: Tensor | None
    """[B, 1, 1, S] bool: True where the grid holds a token; None when it does everywhere"""


class PackedLayout(NamedTuple):
    """Where the documents of a packed batch lie; computed once per forward pass, without waiting for the device.

    A NamedTuple, because ZeRO-3 looks for tensors in tuples that pass between modules.
    """

    cu_seqlens: Tensor
    """[B + 1] int32: document b is rows cu_seqlens[b] to cu_seqlens[b + 1]"""
    max_seqlen: int
    """S, at least the longest document"""
    positions: Tensor
    """[T] int64: position of each token in its document, from 0"""
    grids: tuple[Grid, ...]
    """all documents, in order"""


def packed_layout(cu_seqlens: Tensor, max_seqlen: int, num_tokens: int, tail: Tail | None = None) -> PackedLayout:
    """Lay out `num_tokens` (T) tokens in documents.

    Args:
        cu_seqlens: [B + 1] int32, from 0 to T.
        max_seqlen: length of the longest document, or more.
        num_tokens: T.
        tail: shorter documents at the end.
    """
    documents, device = cu_seqlens.numel() - 1, cu_seqlens.device
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    document = torch.repeat_interleave(torch.arange(documents, device=device), lengths, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=device) - starts[document]

    def grid(begin: int, end: int, first: int, last: int, length: int) -> Grid:
        """Lay out documents [begin, end), which are rows [first, last)."""
        if last - first == (end - begin) * length:
            return Grid(first, last, end - begin, length, None, None)
        slots = (document[first:last] - begin) * length + positions[first:last]
        key_mask = torch.arange(length, device=device) < lengths[begin:end, None]
        return Grid(first, last, end - begin, length, slots, key_mask[:, None, None])

    if tail is None or not 0 < tail.documents < documents:
        return PackedLayout(cu_seqlens, max_seqlen, positions, (grid(0, documents, 0, num_tokens, max_seqlen),))
    begin, first = documents - tail.documents, num_tokens - tail.tokens
    grids = (
        grid(0, begin, 0, first, max_seqlen),
        grid(begin, documents, first, num_tokens, min(tail.max_seqlen, max_seqlen)),
    )
    return PackedLayout(cu_seqlens, max_seqlen, positions, grids)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    dropout_p: float = 0.0,
    query_layout: PackedLayout | None = None,
) -> Tensor:
    """Compute softmax(query key^T / sqrt(d)) value within each document.

    In half precision on CUDA, flash attention reads the packed tokens as they are. Everywhere else: pads to
    [B, H, S, d], runs torch's own kernel under a key mask and takes the tokens back.

    Args:
        query: [Q, H, d]; Q is T without `query_layout`.
        key, value: [T, H, d].
        layout: where the documents lie.
        dropout_p: dropout on the attention probabilities.
        query_layout: where the queries of each document lie, if not every token has one; neither layout has a tail.

    Returns:
        [Q, H, d].
    """
    queries = layout if query_layout is None else query_layout
    if has_flash_attention(query):
        bounds, lengths = (queries.cu_seqlens, layout.cu_seqlens), (queries.max_seqlen, layout.max_seqlen)
        return flash_attention(query, key, value, *bounds, *lengths, dropout_p)
    parts = [
        _grid_attention(query, key, value, query_grid, grid, dropout_p)
        for query_grid, grid in zip(queries.grids, layout.grids, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _grid_attention(
    query: Tensor, key: Tensor, value: Tensor, query_grid: Grid, grid: Grid, dropout_p: float
) -> Tensor:
    """Attend for the queries of one grid: [n, H, d]."""
    padded = F.scaled_dot_product_attention(
        _padded(query, query_grid),
        _padded(key, grid),
        _padded(value, grid),
        attn_mask=grid.key_mask,
        dropout_p=dropout_p,
    )
    rows = padded.transpose(1, 2).flatten(0, 1)
    return rows if query_grid.slots is None else rows.index_select(0, query_grid.slots)


def _padded(packed: Tensor, grid: Grid) -> Tensor:
    """Pad a grid's documents, [T, H, d] -> [B, H, S, d], with zeros where a document has no token."""
    rows = packed[grid.first : grid.last]
    if grid.slots is not None:
        rows = rows.new_zeros(grid.documents * grid.length, *rows.shape[1:]).index_copy(0, grid.slots, rows)
    return rows.view(grid.documents, grid.length, *rows.shape[1:]).transpose(1, 2)


class QueryKeyValue(nn.Linear):
    """BERT's three input projections [D, D] as one matrix [3D, D]: queries, keys, values.

    Whoever wants a part of it goes through this module's forward, because ZeRO-3 holds a parameter together only while
    its own module runs.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__(size, 3 * size)
        self.heads = heads

    def forward(self, hidden: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Project states [T, D] to queries, keys and values [T, H, d]; with `rows` [Q, D], to queries of those."""
        size = self.in_features
        if rows is None:
            projected = super().forward(hidden)
            query, key, value = projected.view(-1, 3, self.heads, size // self.heads).unbind(1)
            return query, key, value
        query = F.linear(rows, self.weight[:size], self.bias[:size])
        others = F.linear(hidden, self.weight[size:], self.bias[size:]).view(-1, 2, self.heads, size // self.heads)
        key, value = others.unbind(1)
        return query.view(-1, self.heads, size // self.heads), key, value


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        shard: place of these heads among the ranks that share the model; None where all heads are here.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.dropout_p = config.attention_probs_dropout_prob
        self.qkv = QueryKeyValue(size, config.num_attention_heads)
        self.output = nn.Linear(size, size)
        self.shard: int | None = None

    def forward(
        self,
        hidden: Tensor,
        layout: PackedLayout,
        rows: Tensor | None = None,
        row_layout: PackedLayout | None = None,
    ) -> Tensor:
        """Attend, [T, D] -> [T, D], before dropout and residual; with `rows` [Q, D] for those rows only, [Q, D]."""
        query, key, value = self.qkv(hidden, rows)
        dropout_p = self.dropout_p if self.training else 0.0
        tokens = len(layout.positions)
        padding = 0 if self.shard is None or rows is not None else len(query) - tokens  # of sequence parallelism
        if padding:
            query, key, value = query[:tokens], key[:tokens], value[:tokens]
        with of_shard(self.shard if dropout_p else None, hidden.device):
            attended = packed_attention(query, key, value, layout, dropout_p, row_layout).flatten(1)
        return self.output(F.pad(attended, (0, 0, 0, padding)) if padding else attended)
