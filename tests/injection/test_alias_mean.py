"""Source `alias_mean` against a plain loop over the names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.injection.contexts import filled, open_context
from trelm_ds.distributed import Ranks


def test_rows_are_the_mean_word_embeddings_of_all_names(one_rank: Ranks, dataset: Path) -> None:
    context = open_context(dataset, one_rank, source="alias_mean")
    names, index = context.index.names, context.index
    found = filled(context)
    assert len(found) == len(index.vector_entities) + index.n_relations > 0
    for row, vector in enumerate(found):
        if row < len(index.vector_entities):
            first, last = names.alias_offsets[index.vector_entities[row] :][:2]
            tokens = np.array(names.alias_tokens[first:last])
        else:
            first, last = names.relation_offsets[row - len(index.vector_entities) :][:2]
            tokens = np.array(names.relation_tokens[first:last])
        words = context.word[torch.from_numpy(tokens).long()] if len(tokens) else context.word
        torch.testing.assert_close(vector, words.mean(0), rtol=1e-5, atol=1e-6)
