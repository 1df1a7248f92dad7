"""What the related projects' models compute, written out literally from their stored tensors, one head at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def linear(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def norm(x: Tensor, tensors: Tensors, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * tensors[f"{name}.weight"]
        + (tensors[f"{name}.bias"])
    )


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """Attention of [T, D] among positions; `seen` [T] is 0 for those that nobody may attend to."""
    size = query.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        if seen is not None:
            scores = scores + (1 - seen) * -10000.0
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(weights / weights.sum(-1, keepdim=True) @ value[:, part])
    return torch.cat(outputs, 1)


def self_attention(x: Tensor, tensors: Tensors, name: str, heads: int, eps: float) -> Tensor:
    """BERT's attention with its residual and LayerNorm."""
    query, key, value = (linear(x, tensors, f"{name}self.{part}") for part in ("query", "key", "value"))
    mixed = linear(attend(query, key, value, heads), tensors, f"{name}output.dense")
    return norm(x + mixed, tensors, f"{name}output.LayerNorm", eps)


def bert(tensors: Tensors, base: str, ids: Tensor, positions: Tensor, heads: int, eps: float) -> Tensor:
    """BERT and RoBERTa [T, D] under Hugging Face's names behind `base`; they differ in the numbers of positions."""
    x = tensors[f"{base}embeddings.word_embeddings.weight"][ids]
    x = x + tensors[f"{base}embeddings.position_embeddings.weight"][positions]
    x = x + tensors[f"{base}embeddings.token_type_embeddings.weight"][0]
    x = norm(x, tensors, f"{base}embeddings.LayerNorm", eps)
    layer = 0
    while f"{base}encoder.layer.{layer}.output.dense.weight" in tensors:
        name = f"{base}encoder.layer.{layer}."
        x = self_attention(x, tensors, f"{name}attention.", heads, eps)
        inner = gelu(linear(x, tensors, f"{name}intermediate.dense"))
        x = norm(x + linear(inner, tensors, f"{name}output.dense"), tensors, f"{name}output.LayerNorm", eps)
        layer += 1
    return x


def fairseq(tensors: Tensors, side: str, ids: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """fairseq's RoBERTa: states [T, D] and scores of words [T, V]."""
    base, eps = f"{side}.sentence_encoder.", 1e-5
    embedding_norm = "emb_layer_norm" if f"{base}emb_layer_norm.weight" in tensors else "layernorm_embedding"
    x = tensors[f"{base}embed_tokens.weight"][ids] + tensors[f"{base}embed_positions.weight"][2 : len(ids) + 2]
    x = norm(x, tensors, base + embedding_norm, eps)
    size, layer = x.shape[1], 0
    while f"{base}layers.{layer}.fc1.weight" in tensors:
        name = f"{base}layers.{layer}."
        if f"{name}self_attn.in_proj_weight" in tensors:
            whole = x @ tensors[f"{name}self_attn.in_proj_weight"].T + tensors[f"{name}self_attn.in_proj_bias"]
            query, key, value = whole[:, :size], whole[:, size : 2 * size], whole[:, 2 * size :]
        else:
            query, key, value = (linear(x, tensors, f"{name}self_attn.{part}_proj") for part in "qkv")
        mixed = linear(attend(query, key, value, heads), tensors, f"{name}self_attn.out_proj")
        x = norm(x + mixed, tensors, f"{name}self_attn_layer_norm", eps)
        inner = linear(gelu(linear(x, tensors, f"{name}fc1")), tensors, f"{name}fc2")
        x = norm(x + inner, tensors, f"{name}final_layer_norm", eps)
        layer += 1
    head = norm(gelu(linear(x, tensors, f"{side}.lm_head.dense")), tensors, f"{side}.lm_head.layer_norm", eps)
    return x, head @ tensors[f"{side}.lm_head.weight"].T + tensors[f"{side}.lm_head.bias"]


def ernie(
    tensors: Tensors, kinds: list[str], ids: Tensor, heads: int, entities: Tensor, mask: Tensor, entity_heads: int = 4
) -> Tensor:
    """Tsinghua's ERNIE: states [T, D] for the embeddings [T, E] of entities and their mask [T]."""
    base, eps = "bert.", 1e-12
    x = tensors[f"{base}embeddings.word_embeddings.weight"][ids]
    x = x + tensors[f"{base}embeddings.position_embeddings.weight"][: len(ids)]
    x = x + tensors[f"{base}embeddings.token_type_embeddings.weight"][0]
    x = norm(x, tensors, f"{base}embeddings.LayerNorm", eps)
    for layer, kind in enumerate(kinds):
        name = f"{base}encoder.layer.{layer}."
        x = self_attention(x, tensors, f"{name}attention.", heads, eps)
        if kind == "sim":
            inner = gelu(linear(x, tensors, f"{name}intermediate.dense"))
            x = norm(x + linear(inner, tensors, f"{name}output.dense"), tensors, f"{name}output.LayerNorm", eps)
            continue
        if kind == "norm":
            parts = (
                linear(entities, tensors, f"{name}attention.self_ent.{part}") for part in ("query", "key", "value")
            )
            mixed = linear(attend(*parts, entity_heads, seen=mask), tensors, f"{name}attention.output_ent.dense")
            entities = norm(entities + mixed, tensors, f"{name}attention.output_ent.LayerNorm", eps)
        entities = entities * mask[:, None]
        inner = gelu(
            linear(x, tensors, f"{name}intermediate.dense") + linear(entities, tensors, f"{name}intermediate.dense_ent")
        )
        x = norm(x + linear(inner, tensors, f"{name}output.dense"), tensors, f"{name}output.LayerNorm", eps)
        out = entities + linear(inner, tensors, f"{name}output.dense_ent")
        entities = norm(out, tensors, f"{name}output.LayerNorm_ent", eps)
    return x


def bert_scores(tensors: Tensors, x: Tensor, word: str, eps: float, outer: str = "") -> Tensor:
    """Scores of words [T, V] of BERT's MLM head."""
    name = f"{outer}cls.predictions."
    x = norm(gelu(linear(x, tensors, f"{name}transform.dense")), tensors, f"{name}transform.LayerNorm", eps)
    return x @ tensors[word].T + tensors[f"{name}bias"]


def roberta_scores(tensors: Tensors, x: Tensor, word: str) -> Tensor:
    """Scores of words [T, V] of RoBERTa's MLM head."""
    x = norm(gelu(linear(x, tensors, "lm_head.dense")), tensors, "lm_head.layer_norm", 1e-5)
    return x @ tensors[word].T + tensors["lm_head.bias"]
