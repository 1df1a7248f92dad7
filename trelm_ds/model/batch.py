"""What the model is given: packed documents, the knowledge items in them, and what the objectives are to predict.

All records are NamedTuples, because ZeRO-3 looks for tensors in tuples that pass between modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trelm_ds.model.attention import Tail


class KnowledgeItems(NamedTuple):
    """I knowledge items of a micro-batch: chosen mentions and long-tail words, by place in the packed tokens.

    Attributes:
        memory: int64 [I], index into the step's `memory_rows`; -1 where the item has no row in the memory bank.
        window: int64 [I, 2], first and last + 1 of the rows of T that Eq. 4 averages; stays on the CPU, where nothing
            waits for the device to learn its sizes.
        cls: int64 [I], the row of T of the item's sequence's first token, whose state Eq. 6 averages.
        new_context: bool [I], whether the item is the first of its memory row in its sequence.
        entity: int64 [I], index into the step's `vector_rows`: the other entity of the injected triple; -1 for words
            and where nothing is injected: h_e is then the tokens' own word embeddings.
        relation: int64 [I], likewise the triple's relation.
        sign: float32 [I], h_e = v_entity + sign * v_relation: -1 where the mention is the head, 1 where it is the tail.
        token_rows: int64 [K], distinct rows of T that follow Eq. 7 in this pass, ascending in the sequences, then in
            the queries behind them.
        token_items: int64 [K], the item of each.
    """

    memory: Tensor
    window: Tensor
    cls: Tensor
    new_context: Tensor
    entity: Tensor
    relation: Tensor
    sign: Tensor
    token_rows: Tensor
    token_items: Tensor


class AssessingBatch(NamedTuple):
    """F facts to complete, whose answers have N tokens in all (Eq. 2).

    Attributes:
        labels: int64 [N], the answers' tokens, fact by fact; decoder mention: the mentions' own.
        fact: int64 [N], the fact of each.
        place: int64 [N], i of Eq. 2, counted from 0.
        positions: int64 [N], the row of each in T: decoder query's mask, decoder mention's token; empty for product.
        spans: int64 [F, 2], decoder product: the mention's rows of T, first and last + 1; else empty [0, 2].
        relations: int64 [F], decoders product and mention: index into the step's `vector_rows`; empty for query.
        inverse: bool [F], whether the mention is the tail and the head is asked for.
        routed: bool [F], whether attribution looks at it in a step that chooses the knowledge paths.
    """

    labels: Tensor
    fact: Tensor
    place: Tensor
    positions: Tensor
    spans: Tensor
    relations: Tensor
    inverse: Tensor
    routed: Tensor

    @property
    def n_targets(self) -> int:
        """N, over which the loss is a mean."""
        return len(self.labels)


class Batch(NamedTuple):
    """B packed sequences and the other documents packed behind them, T tokens in all.

    Attributes:
        input_ids: int64 [T], masks in place.
        cu_seqlens: int32 [B + Q + 1], where each sequence, and behind them each other document, starts; from 0 to T.
        max_seqlen: tokens of the longest of them.
        mlm_positions: int64 [M], rows of T to predict; M may be 0 on a rank.
        mlm_labels: int64 [M], the true tokens.
        n_sequences: B.
        tail: the Q other documents, which are mostly shorter; None where there are none.
        items: knowledge items; None where the run has no knowledge.
        objectives: by name, what each objective beside masked language modelling is to predict: a NamedTuple of tensors
            with `n_targets`. Every batch has an entry for each, which may hold no target.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    mlm_positions: Tensor
    mlm_labels: Tensor
    n_sequences: int
    tail: Tail | None = None
    items: KnowledgeItems | None = None
    objectives: dict[str, Any] = {}  # noqa: RUF012  # a NamedTuple's default; nobody writes into it

    @classmethod
    def of_documents(cls, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Batch:
        """Wrap documents of which nothing is to be predicted."""
        nothing = input_ids.new_empty(0)
        return cls(
            input_ids=input_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            mlm_positions=nothing,
            mlm_labels=nothing,
            n_sequences=len(cu_seqlens) - 1,
        )

    @property
    def targets(self) -> dict[str, int]:
        """By objective, "mlm" first: the number of terms that its loss sums up."""
        return {"mlm": len(self.mlm_labels)} | {name: given.n_targets for name, given in self.objectives.items()}

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`; from pinned memory the copy runs beside the computation."""
        moved: Batch = map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))
        if self.items is None or moved.items is None:
            return moved
        return moved._replace(items=moved.items._replace(window=self.items.window))


class StepTables(NamedTuple):
    """What a step has looked up for all of its micro-batches; no gradient flows into any of it.

    Attributes:
        vectors: float32 [U', D], of the entities and relations in the step's `vector_rows`; empty without any.
        memories: float32 [U, D], M_local + M_global (Eq. 7, `MemoryBank.mixed`) of the step's `memory_rows`; empty
            where lambda is 0.
        memory_lambda: lambda of Eq. 8.
        candidates: int64 [C], tokens that compete with every answer (Eq. 2); none of them: the whole vocabulary does.
        log_counts: float32 [V], log of how often each token is expected among the candidates; None: no logQ correction.
        h_e_weight: weight of h_e beside the token's own word embedding; 1 in Eq. 7.
    """

    vectors: Tensor
    memories: Tensor
    memory_lambda: float
    candidates: Tensor
    log_counts: Tensor | None = None
    h_e_weight: float = 1.0


def map_tensors(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Rebuild nested lists, dicts and NamedTuples with `change` applied to all that is of `kind`."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(item, change, kind) for name, item in value.items()}
    if isinstance(value, list):
        return [map_tensors(item, change, kind) for item in value]
    if not isinstance(value, tuple):
        return value
    items = (map_tensors(item, change, kind) for item in value)
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
