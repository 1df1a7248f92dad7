"""What every injection source implements, what it may use, and how the vector table is filled from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.injection_sources import source_class

if TYPE_CHECKING:  # the settings are checked without torch
    from deepspeed import DeepSpeedEngine
    from torch import Tensor

    from trelm_ds.batches import KnowledgeIndex
    from trelm_ds.config import InjectionConfig
    from trelm_ds.corpus import TokenizerInfo
    from trelm_ds.distributed import Ranks
    from trelm_ds.knowledge.tables import VectorTable

_BATCH = 1024  # rows whose vectors are computed at a time


@dataclass(frozen=True)
class SourceContext:
    """What a source may use.

    Attributes:
        settings: `injection.*`.
        index: which entities and relations the table's rows stand for, with their graph and names. V_e entities
            (`index.vector_entities`, rows of the graph) come first, then R relations (`index.n_relations`).
        tokenizer: its special tokens.
        engine: around the model as it is now. Every rank must call it equally often: ZeRO-3 gathers weights.
        word: float32 [V, D], the word embeddings as they are now.
        ranks: this process among the others.
        seed: for whatever is random in a source. Draw by (seed, table row), as `keyed_random` does: calls, and the
            rows in them, differ with the number of ranks.
    """

    settings: InjectionConfig
    index: KnowledgeIndex
    tokenizer: TokenizerInfo
    engine: DeepSpeedEngine
    word: Tensor
    ranks: Ranks
    seed: int

    @property
    def size(self) -> int:
        """D."""
        return self.word.shape[1]


class InjectionSource(ABC):
    """Vectors of entities and relations for injected embeddings (paper 3.1). Every filling opens a new one.

    A `UserError`, from the constructor or a call, reaches all ranks. The table then gives the entities the mean and
    scale of word embeddings, so a source need not.

    Attributes:
        refreshes: whether its vectors change with the model, so that `injection.refresh_every` applies.
        translates: whether its relations are translations, v_tail = v_head + v_relation, and share the entities' scale.
            Vectors made from relations' names are not, and would make up most of h_e without saying which entity it
            is: the table replaces them by the mean difference between tails and heads.
    """

    refreshes: ClassVar[bool] = True
    translates: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, context: SourceContext) -> None:
        """Open the source; collective."""

    @abstractmethod
    def __call__(self, rows: Tensor) -> Tensor:
        """Compute the vectors of table rows, each a function of the row alone.

        Args:
            rows: int64 [n] on the CPU, numbers of rows of the whole table that this rank holds. n may be 0: all ranks
                make the same number of calls.

        Returns:
            float32 [n, D], on any device.
        """

    def describe(self) -> str | None:
        """Return one line for the log, or None."""
        return None


def fill_vectors(table: VectorTable, context: SourceContext) -> InjectionSource:
    """Fill the vector table from the source that the settings name; collective.

    Raises:
        UserError: on all ranks, if the source has raised one on any.
    """
    source = context.ranks.all_agree(lambda: source_class(context.settings.source)(context))
    problems: list[UserError] = []

    def vectors_of(rows: Tensor) -> Tensor:
        try:
            return source(rows)
        except UserError as error:  # the other ranks are still filling; they hear of it below
            problems.append(error)
            return context.word.new_zeros(len(rows), context.size)

    def check() -> None:
        if problems:
            raise problems[0]

    table.fill(vectors_of, _BATCH)
    context.ranks.all_agree(check)
    if line := source.describe():
        log.info_rank0(f"injection: {line}")
    return source
