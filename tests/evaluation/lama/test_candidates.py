"""What may be answered, by which tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import RobertaTokenizer

from tests.evaluation.lama.makers import (
    BERT_VOCAB,
    ROBERTA_VOCAB,
    WORDS,
    bert_folder,
    roberta_folder,
    scored,
    write_facts,
)
from trelm_ds.errors import UserError
from trelm_ds.evaluation.hf_folder import load_tokenizer_of
from trelm_ds.evaluation.lama.candidates import Candidates
from trelm_ds.evaluation.lama.data import read_parts


def test_vocabularies(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["##s", "[SEP]", "lies", "rome", "paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome"), ("bob", "lies"), ("cid", "paris")]})
    tokenizer = load_tokenizer_of(model)
    # Without a file: neither special tokens nor continuations may be answered, so "lies" wins.
    whole = scored(model, data)
    assert (whole["p_at_1"], whole["groups"].get("tier")) == (pytest.approx(1 / 3), None)
    about = {"source": "model vocabulary", "path": None, "common_with": [], "n_tokens": len(WORDS) - 1}
    assert Candidates(tokenizer, None).description == about

    (data / "common_vocab_cased.txt").write_text("\ufeffRome\nparis\n\natlantis\nold rome\n\n", encoding="utf-8")
    common = scored(model, data)
    assert common["relations"]["P1"]["skipped"] == {"object_outside_vocabulary": 1}
    assert common["p_at_1"] == pytest.approx(1 / 2)
    cased = Candidates(tokenizer, data / "common_vocab_cased.txt")
    assert (cased.description["path"], cased.description["n_tokens"]) == (str(data / "common_vocab_cased.txt"), 2)

    (data / "common_vocab_lowercased.txt").write_text("paris\n", encoding="utf-8")
    assert scored(model, data)["n_facts"] == 1  # the tokenizer lower-cases, so this file is the one

    own = tmp_path / "own.txt"
    own.write_text("lies\nrome\n", encoding="utf-8")
    given = scored(model, data, vocabulary=own)
    assert (given["p_at_1"], given["n_facts"]) == (0.5, 2)


def test_words_of_two_tokenizers(tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "bert", ["rome"])
    roberta = roberta_folder(tmp_path / "roberta", ["ĠRome"])
    tokenizers = {folder: load_tokenizer_of(folder) for folder in (bert, roberta)}
    mine = Candidates(tokenizers[bert], None, [(roberta, tokenizers[roberta])])
    theirs = Candidates(tokenizers[roberta], None, [(bert, tokenizers[bert])])
    # Behind a space both know Paris and Rome; "." is one token of both and no word. "a" is two of RoBERTa: Ġ and a.
    assert [BERT_VOCAB[token] for token in mine.tokens(True)] == ["paris", "rome"]
    assert [ROBERTA_VOCAB[token] for token in theirs.tokens(True)] == ["ĠParis", "ĠRome"]
    # At the beginning of a text RoBERTa has no "Paris", and "a" is one token of both.
    assert [BERT_VOCAB[token] for token in mine.tokens(False)] == ["rome", "a"]
    assert [ROBERTA_VOCAB[token] for token in theirs.tokens(False)] == ["a", "Rome"]
    for candidates in (mine, theirs):
        about = candidates.description
        assert (about["source"], about["n_tokens"]) == ("words of several tokenizers", 2)
        assert candidates.askable(["Paris", "Rome", "berlin", "Old Rome"], True) == [True, True, False, False]
        assert candidates.askable(["Paris", "Rome"], False) == [False, True]

    facts = [("ana", "Paris"), ("bob", "berlin"), ("cid", "Rome")]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": facts})
    asked = [
        scored(model, data, common_with=(other,))
        for model, other in ((bert, roberta), (roberta, bert))
    ]  # fmt: skip
    for part in asked:
        assert {name: one["n_facts"] for name, one in part["relations"].items()} == {"P1": 2, "P2": 1}
        assert part["relations"]["P1"]["majority_baseline"]["p_at_1"] == 0.5


def test_words_of_a_file_that_all_tokenizers_know(tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "bert", ["rome"])
    roberta = roberta_folder(tmp_path / "roberta", ["ĠRome"])
    words = tmp_path / "words.txt"
    words.write_text("Rome\nberlin\n")
    other = [(roberta, load_tokenizer_of(roberta))]
    assert Candidates(load_tokenizer_of(bert), words).tokens(True).numel() == 2
    both = Candidates(load_tokenizer_of(bert), words, other)
    assert [BERT_VOCAB[token] for token in both.tokens(True)] == ["rome"]
    words.write_text("berlin\n")
    with pytest.raises(UserError, match=r"words.txt: none of its 1 words is one token"):
        Candidates(load_tokenizer_of(bert), words, other)


def test_tokenizers_that_begin_every_text_with_a_space(tmp_path: Path) -> None:
    folder = roberta_folder(tmp_path, ["ĠRome"])
    usual, spaced = (RobertaTokenizer.from_pretrained(folder, add_prefix_space=adds) for adds in (False, True))
    begins = Candidates(usual, None)
    assert {ROBERTA_VOCAB[token] for token in begins.tokens(False)} >= {"Rome", "a"}
    assert begins.askable(["Paris", "Rome"], False) == [False, True]
    candidates = Candidates(spaced, None)
    assert candidates.tokens(False).tolist() == candidates.tokens(True).tolist()
    assert candidates.askable(["Paris", "Rome"], False) == [True, True]


def test_real_tokenizers_ask_the_same_facts(shared_data: Path, tmp_path: Path) -> None:
    folders = [shared_data / "tokenizers" / name for name in ("bert-base-uncased", "roberta-base")]
    bert, roberta = map(load_tokenizer_of, folders)
    facts = [fact for relation in read_parts(shared_data / "lama")["trex"] for fact in relation.facts]
    words = tmp_path / "words.txt"
    words.write_text("\n".join(dict.fromkeys(fact.obj for fact in facts)), encoding="utf-8")
    mine, theirs = Candidates(bert, words, [(folders[1], roberta)]), Candidates(roberta, words, [(folders[0], bert)])
    # RoBERTa's " Paris" is BERT's "paris"; where the case tells two words apart, RoBERTa has more tokens.
    shared = [text.strip() for text in roberta.batch_decode(theirs.tokens(True)[:, None])]
    assert {ids for (ids,) in mine.encode(shared, True)} == set(mine.tokens(True).tolist())
    assert 500 < mine.tokens(True).numel() <= theirs.tokens(True).numel()
    objects = [fact.obj for fact in facts]
    assert mine.askable(objects, True) == theirs.askable(objects, True)
    assert mine.askable(["Paris", "C++"], True) == [True, False]


def test_bad_vocabularies_are_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_of(bert_folder(tmp_path / "model", ["paris"]))
    with pytest.raises(UserError, match=r"absent.txt: cannot be read"):
        Candidates(tokenizer, tmp_path / "absent.txt")
    words = tmp_path / "words.txt"
    words.write_text("old rome\n")
    with pytest.raises(UserError, match=r"words.txt: none of its 1 words is one token of the model"):
        Candidates(tokenizer, words)
    words.write_text("\n")
    with pytest.raises(UserError, match=r"words.txt: is empty; give one word a line"):
        Candidates(tokenizer, words)
