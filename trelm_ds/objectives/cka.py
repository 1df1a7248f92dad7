"""Contrastive knowledge assessing (paper 3.1, Eq. 2-3): facts about mentions that the model has to complete.

Its parts lie where injection and routing need them too: `batches.annotator` asks, `model.assessing` computes Eq. 2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from trelm_ds.config import Config
from trelm_ds.model import Assessing, EncoderConfig, MentionDecoder, ProductDecoder
from trelm_ds.objectives.objective import Objective, PreparedDataset


class ContrastiveAssessing(Objective):
    """L = theta * L_MLM + (1 - theta) * L_CKA (Eq. 3). The annotator asks, so that it can avoid what it injects."""

    name: ClassVar[str] = "cka"

    def active(self, config: Config, dataset: PreparedDataset) -> bool:
        """Whether there is a decoder, and an entity whose mentions may be chosen."""
        return dataset.annotator is not None and dataset.annotator.asks

    def weight(self, config: Config) -> float:
        """1 - theta."""
        return 1 - config.cka.mlm_weight

    def mlm_weight(self, config: Config) -> float:
        """theta."""
        return config.cka.mlm_weight

    def module(self, config: Config, sizes: EncoderConfig, dataset: PreparedDataset) -> nn.Module:
        """Make the loss of Eq. 2, with weights of its own for the decoder product only."""
        if config.cka.decoder == "product":
            return Assessing(ProductDecoder(sizes, config.cka.max_answer_tokens))
        return Assessing(MentionDecoder() if config.cka.decoder == "mention" else None)
