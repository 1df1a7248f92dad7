"""Source `encoder` against the model on one name at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.injection.contexts import open_context
from trelm_ds.distributed import Ranks
from trelm_ds.injection import SourceContext
from trelm_ds.injection.encoder import NameEncoder
from trelm_ds.model import Batch


class Recorder:
    """An engine whose states are the token ids, and that notes the mode it was called in."""

    device = torch.device("cpu")
    module = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64))

    def __init__(self) -> None:
        self.training = True
        self.modes: list[bool] = []

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, batch: Batch) -> SimpleNamespace:
        self.modes.append(self.training)
        return SimpleNamespace(states=batch.input_ids[:, None].float())


def with_engine(context: SourceContext, engine: Any) -> SourceContext:
    return SourceContext(
        context.settings, context.index, context.tokenizer, engine, context.word, context.ranks, context.seed
    )


def test_rows_are_means_over_name_and_description(one_rank: Ranks, dataset: Path) -> None:
    engine, context = Recorder(), open_context(dataset, one_rank, max_name_tokens=3)
    source = NameEncoder(with_engine(context, engine))
    names, entities = context.index.names, context.index.vector_entities
    rows = torch.arange(len(entities) + context.index.n_relations)
    found = source(rows)
    for row in rows.tolist():
        if row < len(entities):
            first, last = names.entity_offsets[entities[row] :][:2]
            begin, end = names.text_offsets[entities[row] :][:2]
            tokens = [*names.entity_tokens[first:last].tolist(), *names.text_tokens[begin:end].tolist()][:3]
        else:
            first, last = names.relation_offsets[row - len(entities) :][:2]
            tokens = names.relation_tokens[first:last].tolist()[:3]
        expected = sum(tokens) / len(tokens) if tokens else 0.0
        torch.testing.assert_close(found[row], torch.tensor([expected]))
    assert source(rows[:0]).shape == (0, 1)
    assert engine.modes == [False, False]  # without dropout
    assert engine.training
