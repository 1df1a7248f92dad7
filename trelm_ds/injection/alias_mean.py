"""Source `alias_mean`: the mean word embedding of all names."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from trelm_ds.injection.source import InjectionSource, SourceContext
from trelm_ds.knowledge.tables import token_means
from trelm_ds.ragged import gather, offsets_of


class AliasMean(InjectionSource):
    """The mean word embedding over the tokens of up to 8 names of an entity, or of a relation's label.

    A row without a name gets the mean of all word embeddings.
    """

    def __init__(self, context: SourceContext) -> None:
        names = context.index.names
        tokens, lengths = gather(names.alias_offsets, names.alias_tokens, context.index.vector_entities)
        lengths = np.concatenate([lengths, np.diff(names.relation_offsets)])
        tokens = np.concatenate([tokens, names.relation_tokens])
        self._means = token_means(context.word, offsets_of(lengths), tokens)

    def __call__(self, rows: Tensor) -> Tensor:
        return self._means(rows)
