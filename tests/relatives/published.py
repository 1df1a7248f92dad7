"""Small checkpoints with exactly the names, shapes and files of those that the related projects published."""

from __future__ import annotations

import argparse
import json
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

Tensors = dict[str, Tensor]
D, F, HEADS, LAYERS, POSITIONS = 32, 48, 4, 3, 20
ENTITIES, E = 30, 100  # ERNIE's code has the 100 in it
ERNIE_KINDS = ["sim", "mix", "norm"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the")]
GPT2 = [*bytes_to_unicode().values(), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
ORDER = random.Random(0).sample(range(len(GPT2)), len(GPT2))  # of dict.txt, whose words are GPT-2's numbers
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *(GPT2[number] for number in ORDER), "madeupword0000", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]


class Draw:
    """Random tensors; large, so that a wrong term shows."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(3)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator) * 0.2

    def linear(self, name: str, rows: int, columns: int) -> Tensors:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str, size: int = D) -> Tensors:
        return {f"{name}.weight": 1 + self(size), f"{name}.bias": self(size)}


def roberta_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(ROBERTA)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)])
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    return folder


def bert_vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in BERT), encoding="utf-8")


def dictionary(folder: Path) -> None:
    """fairseq's dict.txt, whose lines are numbered from 4 on."""
    lines = [*map(str, ORDER), "madeupword0000"]
    (folder / "dict.txt").write_text("".join(f"{symbol} {9999 - i}\n" for i, symbol in enumerate(lines)))


# --- Hugging Face's names ---
def encoder(draw: Draw, base: str, words: int, positions: int, token_types: int) -> Tensors:
    tensors = {
        f"{base}embeddings.word_embeddings.weight": draw(words, D),
        f"{base}embeddings.position_embeddings.weight": draw(positions, D),
        f"{base}embeddings.token_type_embeddings.weight": draw(token_types, D),
        **draw.norm(f"{base}embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        name = f"{base}encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            tensors |= draw.linear(f"{name}attention.self.{part}", D, D)
        tensors |= draw.linear(f"{name}attention.output.dense", D, D) | draw.norm(f"{name}attention.output.LayerNorm")
        tensors |= draw.linear(f"{name}intermediate.dense", F, D) | draw.linear(f"{name}output.dense", D, F)
        tensors |= draw.norm(f"{name}output.LayerNorm")
    return tensors | draw.linear(f"{base}pooler.dense", D, D)


def roberta_head(draw: Draw, word: Tensor) -> Tensors:
    head = draw.linear("lm_head.dense", D, D) | draw.norm("lm_head.layer_norm") | {"lm_head.bias": draw(len(word))}
    return head | {"lm_head.decoder.weight": word, "lm_head.decoder.bias": head["lm_head.bias"]}


def bert_head(draw: Draw, word: Tensor, outer: str = "") -> Tensors:
    name = f"{outer}cls.predictions."
    head = draw.linear(f"{name}transform.dense", D, D) | draw.norm(f"{name}transform.LayerNorm")
    return head | {f"{name}bias": draw(len(word)), f"{name}decoder.weight": word}


# --- KEPLER ---
def kepler_tensors(fused: bool = True, side: str = "decoder", embedding_norm: str = "emb_layer_norm") -> Tensors:
    draw, base = Draw(), f"{side}.sentence_encoder."
    tensors = {
        f"{base}embed_tokens.weight": draw(len(ROBERTA), D),
        f"{base}embed_positions.weight": draw(POSITIONS + 2, D),
        **draw.norm(f"{base}{embedding_norm}"),
    }
    for layer in range(LAYERS):
        name = f"{base}layers.{layer}."
        if fused:
            tensors |= {f"{name}self_attn.in_proj_weight": draw(3 * D, D)}
            tensors |= {f"{name}self_attn.in_proj_bias": draw(3 * D)}
        else:
            for part in "qkv":
                tensors |= draw.linear(f"{name}self_attn.{part}_proj", D, D)
        tensors |= draw.linear(f"{name}self_attn.out_proj", D, D) | draw.norm(f"{name}self_attn_layer_norm")
        tensors |= (
            draw.linear(f"{name}fc1", F, D) | draw.linear(f"{name}fc2", D, F) | draw.norm(f"{name}final_layer_norm")
        )
    tensors |= draw.linear(f"{side}.lm_head.dense", D, D) | draw.norm(f"{side}.lm_head.layer_norm")
    tensors |= {f"{side}.lm_head.weight": tensors[f"{base}embed_tokens.weight"]}
    tensors |= {f"{side}.lm_head.bias": draw(len(ROBERTA))}
    head = "ke_heads.wikiData."
    return tensors | {
        **{f"{head}gamma": torch.tensor([4.0]), f"{head}emb_range": torch.tensor([0.1])},
        f"{head}relation_emb.weight": draw(22, D),
    }


def kepler_arguments(**changes: Any) -> argparse.Namespace:
    sizes = {"encoder_layers": LAYERS, "encoder_embed_dim": D, "encoder_ffn_embed_dim": F}
    rest = {"arch": "roberta_base", "task": "MLMetKE", "dropout": 0.1, "attention_dropout": 0.1, "max_positions": 512}
    return argparse.Namespace(**sizes | rest | {"encoder_attention_heads": HEADS, "activation_fn": "gelu"} | changes)


@contextmanager
def fairseq_meters() -> Iterator[types.ModuleType]:
    """A module with fairseq's meters, for as long as a checkpoint with them is saved."""
    module = types.ModuleType("fairseq.meters")
    for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
        setattr(module, name, type(name, (), {"__module__": "fairseq.meters"}))
    sys.modules |= {"fairseq": types.ModuleType("fairseq"), "fairseq.meters": module}
    try:
        yield module
    finally:
        del sys.modules["fairseq"], sys.modules["fairseq.meters"]


def kepler(folder: Path, tensors: Tensors | None = None, arguments: Any = None, zipped: bool = False) -> Tensors:
    """model.pt as fairseq 0.8 saves it under the torch of its time, and dict.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tensors or kepler_tensors()
    with fairseq_meters() as module:
        meter = module.AverageMeter()
        meter.__dict__ |= {"val": 1.5, "sum": np.float64(3.0), "count": np.int64(2)}
        saved = {
            "args": arguments or kepler_arguments(),
            "model": OrderedDict(tensors),
            "optimizer_history": [{"criterion_name": "MLMetKE", "num_updates": 125000}],
            "extra_state": {"train_iterator": {"epoch": 5}, "train_meters": OrderedDict(train_loss=meter)},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(4)}}},
        }
        torch.save(saved, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    dictionary(folder)
    return tensors


# --- The others ---
def colake(folder: Path) -> Tensors:
    """model.bin: transformers 2.11's RobertaForMaskedLM with three token types, and CoLAKE's own parts."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = Draw()
    tensors = encoder(draw, "roberta.", len(ROBERTA), POSITIONS + 2, 3)
    tensors |= roberta_head(draw, tensors["roberta.embeddings.word_embeddings.weight"])
    relations = draw(11, D)
    tensors |= {"rel_embeddings.weight": relations}
    tensors |= draw.linear("ent_lm_head.dense", D, D) | draw.norm("ent_lm_head.layer_norm")
    tensors |= draw.linear("rel_lm_head.dense", D, D) | draw.norm("rel_lm_head.layer_norm")
    bias = draw(11)
    tensors |= {"rel_lm_head.bias": bias, "rel_lm_head.decoder.weight": relations, "rel_lm_head.decoder.bias": bias}
    torch.save(tensors, folder / "model.bin")
    return tensors


def ernie(folder: Path, kinds: list[str] = ERNIE_KINDS) -> Tensors:
    """ernie_base: pytorch_model.bin, ernie_config.json, vocab.txt."""
    bert_vocabulary(folder)
    draw = Draw()
    tensors = encoder(draw, "bert.", len(BERT), POSITIONS, 2)
    for layer, kind in enumerate(kinds):
        name = f"bert.encoder.layer.{layer}."
        if kind == "norm":
            for part in ("query", "key", "value"):
                tensors |= draw.linear(f"{name}attention.self_ent.{part}", E, E)
            tensors |= draw.linear(f"{name}attention.output_ent.dense", E, E)
            tensors |= draw.norm(f"{name}attention.output_ent.LayerNorm", E)
        if kind != "sim":
            tensors |= draw.linear(f"{name}intermediate.dense_ent", F, E) | draw.linear(f"{name}output.dense_ent", E, F)
            tensors |= draw.norm(f"{name}output.LayerNorm_ent", E)
    tensors |= bert_head(draw, tensors["bert.embeddings.word_embeddings.weight"])
    tensors |= draw.linear("cls.predictions_ent.transform.dense", E, D)
    tensors |= draw.norm("cls.predictions_ent.transform.LayerNorm", E) | draw.linear("cls.seq_relationship", 2, D)
    torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
    write_json(folder / "ernie_config.json", bert_config() | {"layer_types": kinds})
    return tensors


def bert_config() -> dict[str, Any]:
    return {
        **{"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": D},
        **{"initializer_range": 0.02, "intermediate_size": F, "max_position_embeddings": POSITIONS},
        **{"num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "type_vocab_size": 2, "vocab_size": len(BERT)},
    }


def luke_config() -> dict[str, Any]:
    return {
        **bert_config(),
        **{"bert_model_name": "roberta-base", "entity_emb_size": 16, "entity_vocab_size": ENTITIES},
        **{"layer_norm_eps": 1e-5, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
        **{"vocab_size": len(ROBERTA)},
    }


def luke(folder: Path, aware: bool = True) -> Tensors:
    """The archive's content: pytorch_model.bin, metadata.json, entity_vocab.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = Draw()
    tensors = encoder(draw, "", len(ROBERTA), POSITIONS + 2, 1)
    for layer in range(LAYERS if aware else 0):
        for part in ("w2e_query", "e2w_query", "e2e_query"):
            tensors |= draw.linear(f"encoder.layer.{layer}.attention.self.{part}", D, D)
    table = draw(ENTITIES, 16)
    tensors |= {
        "entity_embeddings.entity_embeddings.weight": table,
        "entity_embeddings.entity_embedding_dense.weight": draw(D, 16),
        "entity_embeddings.position_embeddings.weight": draw(POSITIONS + 2, D),
        "entity_embeddings.token_type_embeddings.weight": draw(1, D),
        **draw.norm("entity_embeddings.LayerNorm"),
        "entity_predictions.bias": draw(ENTITIES),
        **draw.linear("entity_predictions.transform.dense", 16, D),
        **draw.norm("entity_predictions.transform.LayerNorm", 16),
        "entity_predictions.decoder.weight": table,
    }
    tensors |= roberta_head(draw, tensors["embeddings.word_embeddings.weight"])
    torch.save(tensors, folder / "pytorch_model.bin")
    # The first metadata has BERT's pad id, which LUKE's loader corrects.
    metadata = {"max_seq_length": 512, "max_entity_length": 128, "max_mention_length": 30}
    write_json(folder / "metadata.json", metadata | {"model_config": luke_config() | {"pad_token_id": 0}})
    (folder / "entity_vocab.tsv").write_text("[PAD]\t0\n")
    return tensors


def dkplm(folder: Path, base: str = "bert.", outer: str = "", know: int | None = None) -> Tensors:
    """Hugging Face's folder; with `know` EasyNLP's, which has the projection."""
    bert_vocabulary(folder)
    draw = Draw()
    tensors = encoder(draw, outer + base, len(BERT), POSITIONS, 2)
    tensors |= {f"{outer}{base}embeddings.position_ids": torch.arange(POSITIONS)[None]}
    tensors |= bert_head(draw, tensors[f"{outer}{base}embeddings.word_embeddings.weight"], outer)
    if know:
        tensors |= draw.linear(f"{outer}know_linear", D, know)
    torch.save(tensors, folder / "pytorch_model.bin")
    config = bert_config() | {"layer_norm_eps": 1e-12, "pad_token_id": 0, "model_type": "dkplm" if know else "bert"}
    write_json(folder / "config.json", config)
    return tensors


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)
