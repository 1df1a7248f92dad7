"""Small random models, ours and transformers' side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, RobertaConfig, RobertaForMaskedLM

from trelm_ds.model import Batch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "initializer_range": 0.2,  # larger than usual, so that a wrong term shows
}


def make_hf(architecture: str, **overrides: object) -> PreTrainedModel:
    """A random transformers model in eval mode with non-trivial biases and norms."""
    torch.manual_seed(1)
    if architecture == "bert":
        hf = BertForMaskedLM(BertConfig(**SIZES | {"max_position_embeddings": 24} | overrides))
    else:
        hf = RobertaForMaskedLM(
            RobertaConfig(
                **SIZES | {"max_position_embeddings": 26, "type_vocab_size": 1, "layer_norm_eps": 1e-5} | overrides
            )
        )
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            assert parameter.abs().sum() > 0, name
    return hf.eval()


def pack(documents: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """(input_ids, cu_seqlens, max_seqlen) of token sequences."""
    lengths = torch.tensor([len(document) for document in documents])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    return torch.cat(documents), cu_seqlens, int(lengths.max())


def pack_batch(documents: list[Tensor], positions: list[int] | None = None, labels: list[int] | None = None) -> Batch:
    """A batch of token sequences, in which `labels` are to be predicted at the rows `positions`; nothing by default."""
    batch = Batch.of_documents(*pack(documents))
    wanted = (torch.tensor(given or [], dtype=torch.long) for given in (positions, labels))
    return batch._replace(**dict(zip(("mlm_positions", "mlm_labels"), wanted, strict=True)))


def make_documents(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Random documents without the pad tokens 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, SIZES["vocab_size"], (length,), generator=generator) for length in lengths]
