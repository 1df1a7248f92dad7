"""Prompts: masks, spaces, pairs, and what cannot be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.evaluation.lama.makers import ROBERTA_VOCAB, bert_folder, roberta_folder, scored, write_facts, write_lines
from trelm_ds.evaluation.hf_folder import load_tokenizer_of
from trelm_ds.evaluation.lama.probes import Prompt, encode_prompts


def spelled(tokenizer: Any, prompt: Prompt) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(prompt.input_ids))


def test_prompts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_of(bert_folder(tmp_path, ["paris"]))
    texts = [("ana lies in [MASK] .",), ("ana is old .", "[MASK] is the home"), ("[MASK] is [MASK] .",)]
    one, pair, several = encode_prompts(tokenizer, texts, 1)
    assert (spelled(tokenizer, one), one.type_ids, one.masks) == ("[CLS] ana lies in [MASK] . [SEP]", None, [4])
    assert spelled(tokenizer, pair) == "[CLS] ana is old . [SEP] [MASK] is the home [SEP]"
    assert (pair.type_ids, pair.masks) == ([0] * 6 + [1] * 5, [6])
    assert (spelled(tokenizer, several), several.masks) == ("[CLS] [MASK] is [MASK] . [SEP]", [1])
    three, *_ = encode_prompts(tokenizer, texts, 3)
    assert spelled(tokenizer, three) == "[CLS] ana lies in [MASK] [MASK] [MASK] . [SEP]"
    assert three.masks == [4, 5, 6]


def test_the_answers_space_is_not_the_prompts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_of(roberta_folder(tmp_path, ["ĠParis"]))
    one, several = (encode_prompts(tokenizer, [("ab in [MASK] .",)], masks)[0] for masks in (1, 2))
    assert spelled(tokenizer, one) == "<s> a b Ġ i n <mask> Ġ . </s>"
    assert spelled(tokenizer, several) == "<s> a b Ġ i n <mask> <mask> Ġ . </s>"


def test_byte_level_words_follow_a_space_unless_they_begin_the_prompt(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["Rome", "ĠParis", "ĠRome"])
    facts = [("ab", "Paris"), ("cd", "Rome")]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": facts})
    for vocabulary in (None, tmp_path / "vocabulary.txt"):
        if vocabulary:
            vocabulary.write_text("Paris\nRome\n", encoding="utf-8")
        relations = scored(model, data, vocabulary=vocabulary)["relations"]
        # P1 asks behind a space: "Rome" without one is no candidate, " Paris" wins over " Rome".
        assert (relations["P1"]["p_at_1"], relations["P1"]["n_facts"]) == (0.5, 2)
        # P2 begins with the object: "Rome" is one token there, "Paris" is not.
        assert (relations["P2"]["p_at_1"], relations["P2"]["n_facts"]) == (1.0, 1)
        assert relations["P2"]["skipped"] == {"object_is_several_tokens": 1}


def test_sentences_of_one_relation_may_differ_in_spaces(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["Rome", "ĠRome"])
    sentences = ["ab in [MASK] .", "[MASK] in ab .", "cd in [MASK] ."]
    records = [{"obj_label": "Rome", "masked_sentences": [text]} for text in sentences]
    write_lines(tmp_path / "lama/Squad/test.jsonl", records)
    part = scored(model, tmp_path / "lama", "squad")
    # The object is one and the same, though it is a token of its own at the beginning.
    assert (part["p_at_1"], part["majority_baseline"]["p_at_1"], part["n_facts"]) == (1.0, 1.0, 3)


def test_prompt_length_counts_robertas_unused_positions(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["ĠParis"])
    # 30 usable positions of 32; <s>, "Ġ l i e s Ġ i n" (8), mask, "Ġ ." (2), </s> leave 17 for the subject.
    data = write_facts(tmp_path / "lama", {"P1": [("a" * 17, "Paris"), ("a" * 18, "Paris")]})
    assert scored(model, data)["relations"]["P1"]["skipped"] == {"prompt_too_long": 1}


def test_masks_of_their_own_are_not_asked(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["ĠRome"])
    data = write_facts(tmp_path / "lama", {"P1": [(name, "Rome") for name in ("a", "[MASK]", "a <mask>")]})
    sentences = ["[MASK] or [MASK] .", "<mask> in [MASK] ."]
    records = [{"obj_label": "Rome", "masked_sentences": [text]} for text in sentences]
    write_lines(data / "Squad/test.jsonl", records)
    assert scored(model, data)["skipped"] == {"mask_token_in_subject": 2}
    assert scored(model, data, "squad")["skipped"] == {"mask_token_in_subject": 1}
    assert "<mask>" in ROBERTA_VOCAB
