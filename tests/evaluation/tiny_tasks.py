"""Small made-up tasks in the published formats, and a small random model that can read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = (
    "anna ben carla dora lives works in at near paris rome oslo bank school shop is a good bad film not the . @ # $ ( )"
)
PEOPLE, PLACES, WORKPLACES = ("Anna", "Ben", "Carla", "Dora"), ("Paris", "Rome", "Oslo"), ("bank", "school", "shop")


def write_model(folder: Path, pooler: bool = True, positions: int = 32, **sizes: int) -> Path:
    """A BERT of random weights in the published layout."""
    folder.mkdir(parents=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=positions).save_pretrained(folder)
    torch.manual_seed(3)
    given = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48} | sizes
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=positions, initializer_range=0.1, **given)
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    return folder


def sentences() -> list[tuple[str, str, str]]:
    """(person, what the person does, place) of 24 + 24 sentences."""
    homes = [(person, "lives in", place) for person in PEOPLE for place in PLACES]
    jobs = [(person, "works at the", place) for person in PEOPLE for place in WORKPLACES]
    return [sentence for pair in zip(homes, jobs, strict=True) for sentence in pair]


def write_typing(folder: Path) -> Path:
    """Persons and places, some of which are workplaces as well."""
    folder.mkdir(parents=True)
    records = []
    for person, verb, place in sentences():
        sent = f"{person} {verb} {place}."
        begin = sent.index(place)
        records.append({"sent": sent, "start": 0, "end": len(person), "labels": ["person"], "ents": []})
        labels = ["place", "workplace"] if place in WORKPLACES else ["place"]
        records.append({"sent": sent, "start": begin, "end": begin + len(place), "labels": labels, "ents": []})
    return write_splits(folder, records)


def write_relation(folder: Path, no_relation: str = "no_relation") -> Path:
    """TACRED's format; read backwards, a sentence states no relation."""
    folder.mkdir(parents=True)
    records = []
    for number, (person, verb, place) in enumerate(sentences()):
        token = [person, *verb.split(), place, "-LRB-", "the", "bank", "-RRB-", "."]
        end = token.index(place)
        ends = {"subj_start": 0, "subj_end": 0, "obj_start": end, "obj_end": end}
        relation = "home" if "lives" in verb else "work"
        if number % 4 > 1:
            ends, relation = {"subj_start": end, "subj_end": end, "obj_start": 0, "obj_end": 0}, no_relation
        records.append({"id": str(number), "relation": relation, "token": token} | ends)
    return write_splits(folder, records)


def write_splits(folder: Path, records: list[dict[str, Any]]) -> Path:
    """Everything is in every split: what is learned there can be seen there."""
    for split in ("train", "dev", "test"):
        (folder / f"{split}.json").write_text(json.dumps(records))
    return folder


def write_glue(folder: Path) -> Path:
    """CoLA, MRPC, STS-B and MNLI in GLUE's own layouts."""
    rows: dict[str, list[str]] = {"CoLA/train": [], "MRPC/train": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"]}
    rows["STS-B/train"] = ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"]
    columns = "index promptID pairID genre s1_binary s2_binary s1_parse s2_parse sentence1 sentence2 label1 gold_label"
    rows["MNLI/train"] = [columns.replace(" ", "\t")]
    for number, (person, verb, place) in enumerate(sentences()):
        good, first, second = number % 2, f"{person} {verb} {place}.", f"{person} is at the {place}."
        rows["CoLA/train"].append(f"gj04\t{good}\t{'' if good else '*'}\tthe film is {'good' if good else 'bad'} .")
        other = second if good else "the film is bad ."
        rows["MRPC/train"].append(f'{good}\t1\t2\t"{first}\t{other}')  # a quote that is never closed
        rows["STS-B/train"].append(f"{number}\ta\tb\tc\td\te\tf\t{first}\t{other}\t{5 * good}.000")
        label = ("neutral", "entailment", "contradiction")[number % 3]
        hypothesis = ("a film .", first, f"{person} is not in {place} .")[number % 3]
        rows["MNLI/train"].append("\t".join([str(number), *"abcdefg", first, hypothesis, label, label]))
    for name, lines in rows.items():
        for split in ("dev_matched", "dev_mismatched") if name.startswith("MNLI") else ("dev",):
            rows = {**rows, f"{name.split('/')[0]}/{split}": lines}
    for name, lines in rows.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder
