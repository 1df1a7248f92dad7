"""The model that pre-training optimises: masked language modelling, and other objectives beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from trelm_ds.model.assessing import Assessing, ProductDecoder
from trelm_ds.model.batch import Batch, KnowledgeItems, StepTables
from trelm_ds.model.encoder import Encoder
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.head import MaskedLMHead
from trelm_ds.model.injection import Injected, injected
from trelm_ds.model.partition import cut, partition_of

EXPORTED = ("encoder.", "head.")  # begin the names of the parameters that an exported model has


class ModelOutput(NamedTuple):
    """What one micro-batch yields, by objective, "mlm" first.

    Sums, because the means are over the targets of all ranks and micro-batches.
    """

    losses: dict[str, Tensor]
    """[] fp32 each: sum over the objective's targets; 0, still tied to every parameter, where there is none"""
    correct: dict[str, Tensor]
    """[] int64 each: targets that the model had right; only of objectives for which that means something"""
    states: Tensor
    """[T, D] last-layer states, detached: what the memory bank is updated from"""


class MaskedLanguageModel(nn.Module):
    """Encoder and MLM head; the decoder is the word embedding itself, so there is one Parameter for both.

    Args:
        config: sizes.
        activation_checkpointing: recompute every encoder layer in the backward pass.

    Attributes:
        objectives: by name, what is optimised beside masked language modelling. Each is called with the states [T, D],
            its part of `Batch.objectives`, the step's tables and this model, and returns a loss (a sum) and how many
            targets were right, or None.
        know_linear: trainable map of injected vectors; None without one. No exported model has it.
        tensor_group: the ranks that have parts of this model; None where this one has all of it.
    """

    def __init__(self, config: EncoderConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, activation_checkpointing)
        self.head = MaskedLMHead(config)
        self.objectives = nn.ModuleDict()
        self.know_linear: nn.Linear | None = None
        self.tensor_group: dist.ProcessGroup | None = None

    def own_part(self, name: str, whole: Tensor) -> Tensor:
        """Return what this rank has of a whole parameter."""
        if self.tensor_group is None or (partition := partition_of(name)) is None:
            return whole
        return cut(whole, partition, self.tensor_group.rank(), self.tensor_group.size())

    @property
    def decoder(self) -> ProductDecoder | None:
        """The decoder of assessing by "product"; None for others."""
        decoders = [part.decoder for part in self.objectives.values() if isinstance(part, Assessing)]
        return next((decoder for decoder in decoders if isinstance(decoder, ProductDecoder)), None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every word for states [M, D]: [M, V], in the model's precision."""
        return self.head(hidden, self.encoder.embeddings.word)

    def injection(self, items: KnowledgeItems | None, tables: StepTables | None) -> Injected | None:
        """Compute what stands in the place of word embeddings (Eq. 7); None without items or tables."""
        if items is None or tables is None:
            return None
        return injected(items, tables, self.config.hidden_size, self.know_linear)

    def forward(self, batch: Batch, tables: StepTables | None = None) -> ModelOutput:
        """Compute every objective's loss on packed sequences and what is packed behind them.

        Args:
            batch: on the model's device.
            tables: of the step; needed where the batch has items or is assessed.
        """
        injection = self.injection(batch.items, tables)
        hidden = self.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, injection, batch.tail)
        # A sum over no token is 0 with zero gradients, where a skipped head would leave this rank without the gradients
        # that the others wait to average.
        masked = hidden.index_select(0, batch.mlm_positions)
        loss, right = self.head(masked, self.encoder.embeddings.word, batch.mlm_labels)
        losses, correct = {"mlm": loss}, {"mlm": right}
        for name, given in batch.objectives.items():
            losses[name], right = self.objectives[name](hidden, given, tables, self)
            if right is not None:
                correct[name] = right
        return ModelOutput(losses=losses, correct=correct, states=hidden.detach())
