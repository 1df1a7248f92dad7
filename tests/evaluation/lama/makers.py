"""Small LAMA folders, and models whose answers are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from trelm_ds.evaluation import LamaOptions, LamaResult, evaluate_lama

CITIES = ["paris", "rome", "berlin", "oslo"]
PEOPLE = ["ana", "bob", "cid", "dora", "eve", "fay"]
NAMES = ["a", "common", "name", "following", "city", "country", "language", ":"]  # of LAMA-UHN's question
WORDS = [*CITIES, "lies", "in", "is", "the", "home", "of", *PEOPLE, ".", "##s", "old", "new", *NAMES]
BERT_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEMPLATES = {"P1": "[X] lies in [Y] .", "P2": "[Y] is the home of [X] ."}

Fact = tuple[str, ...]  # subject, object, tier


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write JSON lines, gzipped if the name says so."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_facts(folder: Path, facts: dict[str, list[Fact]], templates: dict[str, str] = TEMPLATES) -> Path:
    """A T-REx folder; even relations are gzipped."""
    lines = [{"relation": name, "template": text, "label": f"label of {name}"} for name, text in templates.items()]
    write_lines(folder / "relations.jsonl", lines)
    for name, rows in facts.items():
        keyed = [dict(zip(("sub_label", "obj_label", "tier"), row, strict=False)) for row in rows]
        write_lines(folder / "TREx" / (f"{name}.jsonl" if int(name[1:]) % 2 else f"{name}.jsonl.gz"), keyed)
    return folder


def bert_folder(folder: Path, favourites: list[str] | None = None, positions: int = 16) -> Path:
    """A model that always ranks words as `favourites` do (first is best), or a random one that reads its input."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(BERT_VOCAB),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        initializer_range=1.0,
    )
    model = BertForMaskedLM(config)
    if favourites is not None:
        favour(model, model.cls.predictions.bias, [BERT_VOCAB.index(word) for word in favourites])
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(BERT_VOCAB) + "\n", encoding="utf-8")
    return folder


def favour(model: torch.nn.Module, bias: torch.nn.Parameter, ids: list[int]) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        bias[ids] = torch.arange(len(ids), 0, -1.0)


ROBERTA_WORDS = ["ĠP", "ĠPa", "ĠPar", "ĠPari", "ĠParis", "Ro", "Rom", "Rome", "ĠRome"]
LETTERS = ["Ġ", ".", *"abcdefghijklmnopqrstuvwxyz", *"PRX"]
ROBERTA_VOCAB = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, *ROBERTA_WORDS, "<mask>"]


def roberta_folder(folder: Path, favourites: list[str]) -> Path:
    """A byte-level model that knows " Paris", " Rome" and "Rome" as tokens, but not "Paris"."""
    merges = ["Ġ P", "ĠP a", "ĠPa r", "ĠPar i", "ĠPari s", "R o", "Ro m", "Rom e", "Ġ Rome"]
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(ROBERTA_VOCAB),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            type_vocab_size=1,
        )
    )
    favour(model, model.lm_head.bias, [ROBERTA_VOCAB.index(token) for token in favourites])
    model.save_pretrained(folder)
    numbered = {token: number for number, token in enumerate(ROBERTA_VOCAB)}
    (folder / "vocab.json").write_text(json.dumps(numbered), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def evaluated(model: Path, data: Path, **options: Any) -> LamaResult:
    return evaluate_lama(LamaOptions(model, data, **{"device": "cpu"} | options))


def scored(model: Path, data: Path, part: str = "trex", **options: Any) -> dict[str, Any]:
    """The figures of one part."""
    return evaluated(model, data, **options).summary["parts"][part]
