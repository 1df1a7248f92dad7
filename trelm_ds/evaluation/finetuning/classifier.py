"""Encoder, pooler and one linear layer, as BertForSequenceClassification (Devlin et al., 2019)."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds.evaluation.finetuning.encoding import TaskBatch
from trelm_ds.evaluation.tasks import Kind
from trelm_ds.model import Encoder, EncoderConfig, Pooler, initialize


class Classifier(nn.Module):
    """Scores every output of a task for packed examples.

    Args:
        encoder: pre-trained.
        pooler: pre-trained or fresh; RoBERTa's head has the same form.
        outputs: C.
        autocast: dtype of the matrix products; None for the weights' own.
    """

    def __init__(self, encoder: Encoder, pooler: Pooler, outputs: int, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        config: EncoderConfig = encoder.config
        self.encoder, self.pooler = encoder, pooler
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.hidden_size, outputs)
        initialize(self.output, config)
        self._autocast = autocast
        # As in transformers, RoBERTa's head drops out before its dense layer as well.
        self._drops_first = config.architecture == "roberta"

    def forward(self, batch: TaskBatch) -> Tensor:
        """Return the outputs, float32 [B, C]."""
        with self._precision(batch.input_ids.device):
            states = self.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, token_types=batch.token_types)
            first = states.index_select(0, batch.cu_seqlens[:-1])
            if self._drops_first:
                first = self.dropout(first)
            outputs: Tensor = self.output(self.dropout(self.pooler(first)))
        return outputs.float()

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self._autocast)


def task_loss(kind: Kind, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum the losses of B examples.

    Args:
        kind: one label: cross entropy; any number: binary cross entropy, the mean over the labels; a number: squares.
        outputs: [B, C].
        targets: as in `TaskBatch`.

    Returns:
        [] float32.
    """
    if kind is Kind.SINGLE:
        return F.cross_entropy(outputs, targets, reduction="sum")
    if kind is Kind.MULTI:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1).sum()
    return F.mse_loss(outputs[:, 0], targets, reduction="sum")
