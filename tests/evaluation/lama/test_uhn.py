"""LAMA-UHN: the two filters, and files that decide in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.evaluation.lama.makers import bert_folder, scored, write_facts, write_lines
from tests.logged import warns
from trelm_ds.evaluation.hf_folder import load_masked_lm
from trelm_ds.evaluation.lama.data import Fact, Relation
from trelm_ds.evaluation.lama.probes import Probe
from trelm_ds.evaluation.lama.uhn import PersonNames, has_helpful_string

TEMPLATES = {"P19": "[X] is in [Y] .", "P27": "[X] is of [Y] .", "P176": "[X] is of [Y] ."}
FACTS: dict[str, list[tuple[str, ...]]] = {
    "P19": [("ana of paris", "Paris"), ("bob", "rome"), ("cid", "oslo")],
    "P176": [("rome home", "rome"), ("dora", "rome")],
}


def folder(path: Path, templates: dict[str, str] = TEMPLATES) -> Path:
    return write_facts(path, FACTS, templates)


def test_string_match() -> None:
    assert has_helpful_string("Apple Watch", "apple")
    assert has_helpful_string("Romeo", "Rome")
    assert not has_helpful_string("Rome", "Romeo")


def test_strings_alone(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["rome"])
    part = scored(model, folder(tmp_path / "lama"))
    assert part["uhn"] == {"source": "computed", "filters": ["string_match"], "removed": {"string_match": 2}}
    kept, removed = part["groups"]["name"]["uhn"], part["groups"]["name"]["helpful"]
    # P19: bob-rome, cid-oslo; P176: dora-rome.
    assert (kept["n_facts"], kept["p_at_1"]) == (3, (1 / 2 + 1) / 2)
    assert (kept["majority_baseline"]["p_at_1"], kept["n_relations"]) == ((1 / 2 + 1) / 2, 2)
    assert (removed["n_facts"], removed["p_at_1"]) == (2, 1 / 2)


def test_names_that_a_model_knows(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["rome"])
    # Every name is common in oslo, [SEP] and berlin: all tokens are candidates, so rome is not among three.
    names = bert_folder(tmp_path / "names", ["oslo", "[SEP]", "berlin", "rome"])
    part = scored(model, folder(tmp_path / "lama"), uhn_model=names)
    assert part["uhn"]["removed"] == {"string_match": 2, "person_name": 1}
    assert part["uhn"]["filters"] == ["string_match", "person_name"]
    assert part["groups"]["name"]["uhn"]["n_facts"] == 2  # bob-rome, dora-rome
    names = bert_folder(tmp_path / "others", ["oslo", "[SEP]", "rome"])
    part = scored(model, folder(tmp_path / "again"), uhn_model=names)
    # P19's rome is given away too, P176 is no relation of persons.
    assert part["uhn"]["removed"] == {"string_match": 2, "person_name": 2}
    assert part["groups"]["name"]["uhn"]["n_facts"] == 1


def test_every_word_of_a_name_is_asked_as_published(tmp_path: Path) -> None:
    """The question of LAMA's create_lama_uhn.py, on a model that reads it."""
    model, tokenizer = load_masked_lm(bert_folder(tmp_path / "model", positions=20))
    model.eval()
    # All words are looked at alike and count much, so that the answer depends on each of them.
    torch.manual_seed(1)
    attention = model.bert.encoder.layer[0].attention.self
    model.bert.embeddings.position_embeddings.weight.data.zero_()
    attention.query.weight.data.zero_()
    attention.value.weight.data.normal_(std=30)

    def top(word: str, noun: str) -> list[int]:
        text = f"{word} is a common name in the following {noun} : [MASK] ."
        inputs = tokenizer(text, return_tensors="pt")
        at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        return model(**inputs).logits[0, at].topk(3).indices.tolist()

    def probe(relation: str, subject: str, obj: str) -> Probe:
        fact = Fact(subject, obj, ("",))
        return Probe(Relation("trex", relation, "", [fact], None), fact, True, (), (), {})  # type: ignore[arg-type]

    nouns = {"P19": "city", "P20": "city", "P27": "country", "P103": "language", "P1412": "language"}
    nouns |= {"place_of_birth": "city", "place_of_death": "city"}
    answers = {noun: {word: top(word, noun) for word in ("ana", "bob")} for noun in set(nouns.values())}
    asker = PersonNames(model, tokenizer, 2)
    probes, expected = [], []
    for relation, noun in nouns.items():
        for token in range(len(tokenizer)):
            probes.append(probe(relation, "ana bob", tokenizer.convert_ids_to_tokens(token)))
            single = tokenizer(f" {probes[-1].fact.obj}", add_special_tokens=False)["input_ids"]
            expected.append(len(single) == 1 and any(single[0] in best for best in answers[noun].values()))
    assert asker.helpful(probes) == expected
    assert 0 < sum(expected) < len(expected)
    either = {noun: {token for best in found.values() for token in best} for noun, found in answers.items()}
    assert either["city"] != either["country"]
    assert either["city"] != set(answers["city"]["ana"]) != set(answers["city"]["bob"])
    assert asker.helpful([probe("P176", "ana", "rome"), probe("P19", "[MASK]", "rome")]) == [False, False]


def test_published_files_decide(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["rome"])
    data = folder(tmp_path / "lama")
    record: dict[str, Any] = {"sub_label": "ana of paris", "obj_label": "Paris"}
    write_lines(data / "TREx_UHN/P19.jsonl", [record, {"sub_label": "no", "obj_label": "fact"}])
    (data / "TREx_UHN/P176.jsonl").write_text("")
    with warns("--uhn-model: not used; LAMA-UHN's files are there"):
        part = scored(model, data, uhn_model=model)
    assert part["uhn"] == {"source": "files", "filters": ["published"], "removed": {"published": 4}}
    assert (part["groups"]["name"]["uhn"]["n_facts"], part["groups"]["name"]["uhn"]["p_at_1"]) == (1, 0.0)


def test_other_parts_have_none(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["rome"])
    write_lines(tmp_path / "lama/Squad/test.jsonl", [{"obj_label": "rome", "masked_sentences": ["in [MASK] ."]}])
    with warns("or no part that it filters"):
        part = scored(model, tmp_path / "lama", "squad", uhn_model=model)
    assert (part["uhn"], part["groups"]) == (None, {})
