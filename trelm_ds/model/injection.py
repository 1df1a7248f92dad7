"""Knowledge injection (paper 3.2, Eq. 7): what stands in the place of a mention's word embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trelm_ds.model.batch import KnowledgeItems, StepTables


class Injected(NamedTuple):
    """Embeddings that follow Eq. 7 instead of the word embedding E: keep * E + vector at each of K tokens.

    A NamedTuple, because ZeRO-3 looks for tensors in tuples that pass between modules.
    """

    rows: Tensor
    """[K] int64, distinct rows of the T tokens"""
    items: Tensor
    """[K] int64, the knowledge item that each belongs to"""
    keep: Tensor
    """[I] float32, how much of the token's own word embedding each item keeps"""
    vectors: Tensor
    """[I, D] float32, what is added; gradients flow into it through know_linear only"""


def know_linear(size: int) -> nn.Linear:
    """Make the trainable map [D, D] from the vectors of triples to word embeddings, at first the identity."""
    made = nn.Linear(size, size)
    nn.init.eye_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def injected(items: KnowledgeItems, tables: StepTables, size: int, project: nn.Linear | None = None) -> Injected:
    """Compute I_p = (1 - lambda) h_e + lambda / 2 (M_local + M_global) of each item (Eq. 7).

    Without a triple h_e is the token's own word embedding, which the encoder has: the item keeps 1 - lambda of it. With
    one it keeps 1 - `tables.h_e_weight` of that, which in Eq. 7 is nothing.

    Args:
        tables: of its step.
        size: D.
        project: `know_linear`, called also where nothing is injected: all ranks must use its weights.
    """
    count, has_triple = len(items.memory), items.entity >= 0
    h_e = memories = torch.zeros(count, size, device=items.memory.device)
    share = torch.zeros(count, device=items.memory.device)
    if len(tables.vectors):
        entity, relation = (tables.vectors[rows.clamp(min=0)] for rows in (items.entity, items.relation))
        h_e = entity + items.sign[:, None] * relation
    if project is not None:
        h_e = project(h_e.to(project.weight.dtype))
    weight = tables.h_e_weight * has_triple
    h_e = h_e.float() * weight[:, None]
    if len(tables.memories):
        share = tables.memory_lambda * (items.memory >= 0)
        memories = tables.memories[items.memory.clamp(min=0)]
    vectors = (1 - share)[:, None] * h_e + (share / 2)[:, None] * memories
    return Injected(rows=items.token_rows, items=items.token_items, keep=(1 - share) * (1 - weight), vectors=vectors)
