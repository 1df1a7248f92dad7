"""LAMA against models whose answers are known."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM

from trelm_ds.errors import UserError
from trelm_ds.evaluation import evaluate_lama, format_table, plot, write_result

CITIES = ["paris", "rome", "berlin", "oslo"]
PEOPLE = ["ana", "bob", "cid", "dora", "eve", "fay"]
WORDS = [*CITIES, "lies", "in", "is", "the", "home", "of", *PEOPLE, ".", "##s"]
BERT_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEMPLATES = {"P1": "[X] lies in [Y] .", "P2": "[Y] is the home of [X] ."}

Fact = tuple[str, ...]  # subject, object, tier


def write_facts(folder: Path, facts: dict[str, list[Fact]], templates: dict[str, str] = TEMPLATES) -> Path:
    """A LAMA folder; even relations are gzipped."""
    (folder / "TREx").mkdir(parents=True)
    lines = [{"relation": name, "template": text, "label": f"label of {name}"} for name, text in templates.items()]
    (folder / "relations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, rows in facts.items():
        keyed = [dict(zip(("sub_label", "obj_label", "tier"), row, strict=False)) for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in keyed)
        if int(name[1:]) % 2:
            (folder / "TREx" / f"{name}.jsonl").write_text(text, encoding="utf-8")
        else:
            (folder / "TREx" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
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


def test_scores_by_hand(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris", "rome"])
    data = write_facts(
        tmp_path / "lama",
        {
            "P1": [
                ("ana", "paris", "often"),
                ("bob", "paris", "once"),
                ("cid", "rome", "once"),
                ("dora", "Paris", "once"),  # the tokenizer lower-cases
                ("ana", "paris", "often"),  # duplicate
                ("eve", "old rome", "often"),  # two tokens
                ("fay", "atlantis", "often"),  # unknown
                ("ana bob cid dora eve fay ana bob cid dora", "rome", "often"),  # 16 tokens with the template
                ("ana bob cid dora eve fay ana bob cid dora eve", "rome", "often"),  # 17: too long
                ("[MASK]", "rome", "often"),
            ],
            "P2": [("ana", "berlin", "often"), ("bob", "rome", "graph_only"), ("cid", "berlin", "often")],
        },
    )
    result = evaluate_lama(model, data, batch_size=2, device="cpu")
    # P1: paris, paris, rome, paris, rome are asked, the model says paris; P2: berlin, rome, berlin.
    assert result["relations"] == {
        "P1": {
            "label": "label of P1",
            "p_at_1": 3 / 5,
            "majority_baseline": 3 / 5,
            "n_facts": 5,
            "skipped": {
                "duplicate": 1,
                "object_is_several_tokens": 1,
                "object_outside_vocabulary": 1,
                "prompt_too_long": 1,
                "mask_token_in_subject": 1,
            },
        },
        "P2": {"label": "label of P2", "p_at_1": 0.0, "majority_baseline": 2 / 3, "n_facts": 3, "skipped": {}},
    }
    assert result["p_at_1"] == pytest.approx((3 / 5 + 0) / 2)
    assert result["majority_baseline"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert (result["n_facts"], result["n_relations"], sum(result["skipped"].values())) == (8, 2, 5)
    assert result["tiers"] == {
        # P1: ana-paris, long-rome; P2: berlin twice
        "often": {"p_at_1": (1 / 2 + 0) / 2, "majority_baseline": (1 / 2 + 1) / 2, "n_facts": 4, "n_relations": 2},
        "once": {"p_at_1": 2 / 3, "majority_baseline": 2 / 3, "n_facts": 3, "n_relations": 1},
        "graph_only": {"p_at_1": 0.0, "majority_baseline": 1.0, "n_facts": 1, "n_relations": 1},
    }
    assert (result["model"], result["data"]) == (str(model), str(data))


def test_vocabularies(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["##s", "[SEP]", "lies", "rome", "paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome"), ("bob", "lies"), ("cid", "paris")]})
    # Without a file: neither special tokens nor continuations may be answered, so "lies" wins.
    whole = evaluate_lama(model, data)
    assert whole["p_at_1"] == pytest.approx(1 / 3)
    assert whole["tiers"] == {}
    assert whole["candidates"] == {"source": "model vocabulary", "path": None, "n_tokens": len(WORDS) - 1}

    (data / "common_vocab_cased.txt").write_text("Rome\nparis\n\natlantis\nold rome\n", encoding="utf-8")
    common = evaluate_lama(model, data)
    assert common["relations"]["P1"]["skipped"] == {"object_outside_vocabulary": 1}
    assert common["p_at_1"] == pytest.approx(1 / 2)
    assert common["candidates"]["path"] == str(data / "common_vocab_cased.txt")
    assert (common["candidates"]["n_words"], common["candidates"]["n_tokens"]) == (4, 2)

    (data / "common_vocab_lowercased.txt").write_text("paris\n", encoding="utf-8")
    assert evaluate_lama(model, data)["candidates"]["path"] == str(data / "common_vocab_lowercased.txt")

    own = tmp_path / "own.txt"
    own.write_text("lies\nrome\n", encoding="utf-8")
    given = evaluate_lama(model, data, vocabulary=own)
    assert (given["p_at_1"], given["n_facts"], given["candidates"]["path"]) == (0.5, 2, str(own))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_padding_and_order_change_nothing(tmp_path: Path, batch_size: int) -> None:
    folder = bert_folder(tmp_path / "model")
    draw = random.Random(0)
    subjects = [" ".join(draw.choices(PEOPLE, k=words)) for words in range(2, 9) for _ in range(12)]  # much padding
    # One object a subject: with all four objects each, any answer at all would score 1/4.
    facts = [(subject, CITIES[i % 4]) for i, subject in enumerate(dict.fromkeys(subjects))]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": facts})
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("\n".join(CITIES), encoding="utf-8")
    result = evaluate_lama(folder, data, batch_size, vocabulary)

    model, tokenizer = BertForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    allowed = [BERT_VOCAB.index(word) for word in CITIES]
    answers = {}
    for name, template in TEMPLATES.items():
        hits, said = 0, set()
        for subject, obj in facts:
            ids = tokenizer(template.replace("[X]", subject).replace("[Y]", "[MASK]"), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0, ids[0].tolist().index(tokenizer.mask_token_id)]
            best = max(allowed, key=lambda index: scores[index].item())
            hits += BERT_VOCAB[best] == obj
            said.add(best)
        answers[name] = said
        assert result["relations"][name]["p_at_1"] == pytest.approx(hits / len(facts))
    assert len(set.union(*answers.values())) > 1  # the model does read its input


def roberta_folder(folder: Path, favourites: list[str]) -> Path:
    """A byte-level model that knows " Paris", " Rome" and "Rome" as tokens, but not "Paris"."""
    merged = ["ĠP", "ĠPa", "ĠPar", "ĠPari", "ĠParis", "Ro", "Rom", "Rome", "ĠRome"]
    merges = ["Ġ P", "ĠP a", "ĠPa r", "ĠPar i", "ĠPari s", "R o", "Ro m", "Rom e", "Ġ Rome"]
    letters = ["Ġ", ".", *"abcdefghijklmnopqrstuvwxyz", *"PRX"]
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *letters, *merged, "<mask>"]
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(vocab),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            type_vocab_size=1,
        )
    )
    favour(model, model.lm_head.bias, [vocab.index(token) for token in favourites])
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def test_byte_level_words_follow_a_space_unless_they_begin_the_prompt(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["Rome", "ĠParis", "ĠRome"])
    facts = [("ab", "Paris"), ("cd", "Rome")]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": facts})
    for vocabulary in (None, tmp_path / "vocabulary.txt"):
        if vocabulary:
            vocabulary.write_text("Paris\nRome\n", encoding="utf-8")
        result = evaluate_lama(model, data, vocabulary=vocabulary)
        # P1 asks behind a space: "Rome" without one is no candidate, " Paris" wins over " Rome".
        assert (result["relations"]["P1"]["p_at_1"], result["relations"]["P1"]["n_facts"]) == (0.5, 2)
        # P2 begins with the object: "Rome" is one token there, "Paris" is not.
        assert (result["relations"]["P2"]["p_at_1"], result["relations"]["P2"]["n_facts"]) == (1.0, 1)
        assert result["relations"]["P2"]["skipped"] == {"object_is_several_tokens": 1}


def test_prompt_length_counts_robertas_unused_positions(tmp_path: Path) -> None:
    model = roberta_folder(tmp_path / "model", ["ĠParis"])
    # 30 usable positions of 32; <s>, "Ġ l i e s Ġ i n" (8), mask, "Ġ ." (2), </s> leave 17 for the subject.
    data = write_facts(tmp_path / "lama", {"P1": [("a" * 17, "Paris"), ("a" * 18, "Paris")]})
    assert evaluate_lama(model, data)["relations"]["P1"]["skipped"] == {"prompt_too_long": 1}


def sample_result(tmp_path: Path) -> dict[str, Any]:
    model = bert_folder(tmp_path / "model", ["paris"])
    facts: dict[str, list[Fact]] = {
        "P1": [("ana", "paris", "often"), ("bob", "rome", "once")],
        "P2": [("ana", "old rome")],
    }
    return evaluate_lama(model, write_facts(tmp_path / "lama", facts))


def test_a_relation_without_askable_fact_is_shown_and_not_averaged(tmp_path: Path) -> None:
    result = sample_result(tmp_path)
    assert result["relations"]["P2"]["p_at_1"] is None
    assert (result["p_at_1"], result["n_relations"]) == (0.5, 1)
    table = format_table(result).splitlines()
    rows = {line.split()[0]: line.split()[-3:] for line in table if line[:1] in "Pm"}
    assert rows["P1"] == ["50.0", "50.0", "2"]
    assert rows["P2"] == ["-", "-", "0"]
    assert rows["mean"] == ["50.0", "50.0", "2"]
    tiers = {line.split()[1]: line.split()[2:] for line in table if line.startswith("tier")}
    assert tiers == {"often": ["100.0", "100.0", "1"], "once": ["0.0", "100.0", "1"]}
    assert "1 object is several tokens" in table[-1]


def test_result_and_chart_are_written(tmp_path: Path) -> None:
    result = sample_result(tmp_path)
    path = tmp_path / "new" / "lama.json"
    write_result(result, path)
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["lama.json"]
    heights = []
    for tiers in (result["tiers"], {}):
        plot(result | {"tiers": tiers}, tmp_path / "lama.png")
        png = (tmp_path / "lama.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        heights.append(int.from_bytes(png[20:24]))
    assert heights[0] > heights[1]  # the second panel
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"lama.json: cannot be written"):
        write_result(result, tmp_path / "file" / "lama.json")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


BAD_DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda d: d.rename(d.with_name("moved")), r"lama: is not a folder"),
    "no relations": (lambda d: (d / "relations.jsonl").unlink(), r"relations.jsonl does not exist"),
    "no facts": (lambda d: (d / "TREx/P1.jsonl").unlink(), r"TREx: holds no P\*.jsonl"),
    "no JSON": (lambda d: append(d / "TREx/P1.jsonl", "{nope\n"), r"P1.jsonl:2: not valid JSON"),
    "no object": (lambda d: append(d / "TREx/P1.jsonl", "[1]\n"), r"P1.jsonl:2: expected a JSON object, got list"),
    "no label": (lambda d: append(d / "TREx/P1.jsonl", '\n{"sub_label": "x"}\n'), r"P1.jsonl:3: 'obj_label' must be"),
    "not gzip": (lambda d: (d / "TREx/P2.jsonl.gz").write_text("x"), r"P2.jsonl.gz:1: not valid JSON"),
    "twice": (lambda d: (d / "TREx/P1.jsonl.gz").write_bytes(b""), r"P1.jsonl.gz: duplicates P1.jsonl"),
    "no template": (lambda d: (d / "TREx/P77.jsonl").write_text(""), r"P77.jsonl: relation P77 has no template"),
    "template": (
        lambda d: append(d / "relations.jsonl", '{"relation": "P3", "template": "[X] only"}\n'),
        r"relations.jsonl:3: the template must hold \[X\] and \[Y\] once each",
    ),
    "nothing to ask": (
        lambda d: (d / "TREx/P1.jsonl").write_text('{"sub_label": "ana", "obj_label": "old rome"}\n'),
        r"no fact can be asked of .*object_is_several_tokens': 1",
    ),
    "vocabulary": (
        lambda d: (d / "common_vocab.txt").write_text("old rome\n"),
        r"common_vocab.txt: none of its 1 words is one token",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named(case: str, tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris")]})
    spoil, message = BAD_DATA[case]
    spoil(data)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_lama(model, data)
    assert "\n" not in str(caught.value)


def without_head(folder: Path) -> None:
    BertModel(BertForMaskedLM.from_pretrained(folder).config).save_pretrained(folder)


def pickled_text(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("<html>not found</html>")


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda m: m.rename(m.with_name("moved")), r"model: holds no config.json"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), r"transformers cannot load it"),
    "cut weights": (lambda m: (m / "model.safetensors").write_bytes(b"x" * 99), r"transformers cannot load it"),
    "lfs pointer": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"model.safetensors: is a git-lfs pointer, not the file; run `git lfs pull`",
    ),
    "bin": (pickled_text, r"its weights are damaged, or hold more than tensors; fetch them again"),
    "absurd": (
        lambda m: (m / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 1000000000}'),
        r"config.json: num_hidden_layers: must be at least 1 and at most 10000",
    ),
    "no config": (lambda m: (m / "config.json").write_text("{"), r"config.json: cannot be read as JSON"),
    "blank line": (lambda m: append(m / "vocab.txt", "\nmore\n"), r"vocab.txt:\d+: is empty"),
    "no head": (without_head, r"has no weights for 'cls.predictions"),
    "larger tokenizer": (lambda m: append(m / "vocab.txt", "more\n"), r"its tokenizer has 24 tokens, its model 23"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models_are_named(case: str, tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris")]})
    spoil, message = BAD_MODELS[case]
    spoil(model)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_lama(model, data)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size: must be at least 1, got 0"):
        evaluate_lama(tmp_path, tmp_path, batch_size=0)
    model = bert_folder(tmp_path / "model", ["paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris")]})
    with pytest.raises(UserError, match="device: 'abacus' is not a torch device"):
        evaluate_lama(model, data, device="abacus")
    with pytest.raises(UserError, match=r"absent.txt: cannot be read as a vocabulary"):
        evaluate_lama(model, data, vocabulary=tmp_path / "absent.txt")


def test_real_files_are_read() -> None:
    folder = Path(__file__).parents[2] / "../shared/data/lama"
    if not folder.is_dir():
        pytest.skip("../shared/data/lama is not here")
    from trelm_ds.evaluation.lama_data import read_lama

    relations = read_lama(folder)
    assert (len(relations), sum(len(relation.facts) for relation in relations)) == (20, 17825)
    assert all(relation.label and relation.facts for relation in relations)
