"""The model's answers against ones computed prompt by prompt."""

from __future__ import annotations

import functools
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from tests.evaluation.lama.makers import (
    BERT_VOCAB,
    CITIES,
    PEOPLE,
    TEMPLATES,
    bert_folder,
    evaluated,
    roberta_folder,
    write_facts,
    write_lines,
)
from trelm_ds.errors import UserError
from trelm_ds.evaluation.hf_folder import load_tokenizer_of

SINGLE = CITIES
SEVERAL = ["old rome", "new paris", "old pariss", "the home of"]


def subjects(n: int = 84) -> list[str]:
    """Names of two to eight words, so that batches need much padding."""
    draw = random.Random(0)
    return list(dict.fromkeys(" ".join(draw.choices(PEOPLE, k=2 + row % 7)) for row in range(n)))


@functools.cache
def opened(folder: Path) -> tuple[Any, Any]:
    return BertForMaskedLM.from_pretrained(folder).eval(), load_tokenizer_of(folder)


def by_hand(folder: Path, prompt: str, objects: list[str], masks: int) -> dict[str, float]:
    """Mean log-probability of the objects' tokens at the prompt's masks, in a batch of one."""
    model, tokenizer = opened(folder)
    ids = tokenizer(prompt.replace("[Y]", " ".join(["[MASK]"] * masks)), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0, ids[0] == tokenizer.mask_token_id].log_softmax(-1)
    found = {}
    for obj in objects:
        tokens = tokenizer(obj, add_special_tokens=False)["input_ids"]
        if len(tokens) == masks:
            found[obj] = torch.stack([log_probs[place, token] for place, token in enumerate(tokens)]).mean().item()
    return found


def rank(scores: dict[str, float], obj: str) -> int:
    return 1 + sum(value > scores[obj] for value in scores.values())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_padding_and_order_change_nothing(tmp_path: Path, batch_size: int) -> None:
    folder = bert_folder(tmp_path / "model", positions=20)
    objects = [*SINGLE, *SEVERAL]
    # One object a subject: with all of them each, any answer at all would score the same.
    facts = [(subject, objects[row % len(objects)]) for row, subject in enumerate(subjects())]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": facts[:24]})
    words = tmp_path / "vocabulary.txt"
    words.write_text("\n".join(CITIES), encoding="utf-8")
    result = evaluated(folder, data, vocabulary=words, batch_size=batch_size, multi_token="mean-log-prob")

    assert len(result.predictions) == len(facts) + 24
    said = set()
    for record in result.predictions:
        prompt = TEMPLATES[record["relation"]].replace("[X]", record["subject"])
        multi = record["object"] in SEVERAL
        scores: dict[str, float] = {}
        for masks in (2, 3) if multi else (1,):
            scores |= by_hand(folder, prompt, SEVERAL if multi else SINGLE, masks)
        assert len(scores) == 4 == record["n_candidates"] == len(record["top"])
        assert record["rank"] == rank(scores, record["object"])
        assert record["log_prob"] == pytest.approx(scores[record["object"]], abs=2e-5)
        assert [text for text, _ in record["top"]] == sorted(scores, key=scores.__getitem__, reverse=True)
        assert [value for _, value in record["top"]] == pytest.approx(sorted(scores.values(), reverse=True), abs=2e-5)
        said.add(record["top"][0][0])
    assert len(said) > 2  # the model does read its input


@pytest.mark.parametrize("decoder", [None, torch.nn.Identity()])
def test_a_head_that_calls_no_decoder_of_its_own(
    tmp_path: Path, decoder: torch.nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bert_folder(tmp_path / "model", positions=20)
    objects = [*SINGLE, *SEVERAL]
    facts = [(subject, objects[row % len(objects)]) for row, subject in enumerate(subjects(24))]
    data = write_facts(tmp_path / "lama", {"P1": facts})
    usual = evaluated(folder, data, multi_token="mean-log-prob")
    monkeypatch.setattr(BertForMaskedLM, "get_output_embeddings", lambda self: decoder)
    for record, same in zip(
        evaluated(folder, data, multi_token="mean-log-prob").predictions, usual.predictions, strict=True
    ):
        assert (record["subject"], record["rank"]) == (same["subject"], same["rank"])
        assert record["log_prob"] == pytest.approx(same["log_prob"], abs=2e-5)


def test_equal_scores_are_decided_by_token(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", [])  # every word scores 0
    data = write_facts(tmp_path / "lama", {"P1": [(name, city) for name, city in zip(PEOPLE, CITIES, strict=False)]})
    data = write_facts(tmp_path / "several", {"P1": [(name, obj) for name, obj in zip(PEOPLE, SEVERAL, strict=False)]})
    words = tmp_path / "words.txt"
    words.write_text("\n".join([*CITIES, "ana"]))
    one = evaluated(model, tmp_path / "lama", vocabulary=words)
    assert [record["rank"] for record in one.predictions] == [1, 2, 3, 4]  # the vocabulary's order
    assert one.summary["parts"]["trex"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    several = evaluated(model, data, multi_token="mean-log-prob").predictions
    tokenizer = load_tokenizer_of(model)
    order = sorted(SEVERAL, key=lambda obj: tokenizer(obj, add_special_tokens=False)["input_ids"])
    assert {record["object"]: record["rank"] for record in several} == {obj: i for i, obj in enumerate(order, 1)}


def test_several_tokens_with_spaces(tmp_path: Path) -> None:
    """Behind a space and at the beginning, a byte-level object has other tokens; both choose among the same objects."""
    model = roberta_folder(tmp_path / "model", ["ĠRome", "ĠParis", "R"])
    records = [
        {"obj_label": obj, "masked_sentences": [text]}
        for obj, text in itertools.product(["Rome Paris", "Paris Rome"], ["ab in [MASK] .", "[MASK] in ab ."])
    ]
    write_lines(tmp_path / "lama/Squad/test.jsonl", records)
    # At the beginning "Rome" and "Paris Rome" have one and six tokens; " Rome Paris" two.
    result = evaluated(model, tmp_path / "lama", multi_token="mean-log-prob")
    part = result.summary["parts"]["squad"]
    assert (part["n_facts"], part["groups"]["object"]["multi_token"]["n_facts"]) == (0, 4)
    assert [(record["tokens"], record["n_candidates"]) for record in result.predictions] == [
        (2, 2),
        (2, 2),
        (2, 2),
        (6, 2),
    ]
    assert part["groups"]["object"]["multi_token"]["majority_baseline"]["p_at_1"] == 0.5


def test_scores_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "model", ["paris"])
    model: Any = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.cls.predictions.bias[BERT_VOCAB.index("rome")] = float("nan")
    model.save_pretrained(folder)
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris")]})
    with pytest.raises(UserError, match=r"model: its scores are not numbers; its weights hold NaN or infinity"):
        evaluated(folder, data)
