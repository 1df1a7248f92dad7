"""The shape of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import nn

from trelm_ds.batches import Annotator, Collator
from trelm_ds.config import Config
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.model import EncoderConfig


class PreparedDataset(NamedTuple):
    """What an objective may read of a dataset.

    Attributes:
        folder: with the graph, names and tokenizer on this machine.
        max_length: tokens of its longest sequence.
        annotator: finds mentions and facts; None for a run without knowledge.
    """

    folder: Path
    info: TokenizerInfo
    max_length: int
    annotator: Annotator | None


class Objective(ABC):
    """A loss beside masked language modelling.

    The run's loss is `weight` of "mlm" times its mean, plus each active objective's `weight` times the mean over its
    own targets, all of the global batch.

    Attributes:
        name: its section of the settings, and the prefix of its metrics (`NAME_loss`, `NAME_accuracy`).
    """

    name: ClassVar[str]

    @abstractmethod
    def active(self, config: Config, dataset: PreparedDataset) -> bool:
        """Whether the run has it."""

    @abstractmethod
    def weight(self, config: Config) -> float:
        """Its weight in the loss."""

    def mlm_weight(self, config: Config) -> float:
        """The weight that it leaves to masked language modelling; of several objectives' the least counts."""
        return 1.0

    def collator(self, config: Config, dataset: PreparedDataset) -> Collator | None:
        """Make what adds its targets to batches, under its name; None where the annotator does it already.

        It is pickled for the loader's worker processes. `batches/collator.py` has what it gets and returns:
        `Sequences`, the tokens of a micro-batch with their masks and mentions as arrays, and `BatchPart`, whose
        `objectives` hold the entry `name` in every batch, also without a target.

        Raises:
            UserError: the dataset lacks what it needs.
        """
        return None

    @abstractmethod
    def module(self, config: Config, sizes: EncoderConfig, dataset: PreparedDataset) -> nn.Module:
        """Make the module that computes the loss, with the parameters that it needs; no exported model has them.

        It is called with (last-layer states [T, D], its entry of `Batch.objectives`, the step's `StepTables` or None,
        the model) and returns the sum of the losses over the targets, [] fp32, tied to every parameter also where there
        is no target; and how many targets were right, [] int64, or None.

        It may call the model's modules, but not use their weights: ZeRO-3 holds a weight together only while its own
        module runs. `model.encoder.embeddings.word(states, bias)` scores states [M, D] against all words, [M, V];
        `model.logits(states)` does so behind the MLM head. Rows that are looked up several times need
        `F.embedding(rows, states)`: gradients of `states[rows]` are summed in another order every time.
        """
