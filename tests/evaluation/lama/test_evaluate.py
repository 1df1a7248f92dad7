"""LAMA from folder to figures, against models whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.lama.makers import bert_folder, evaluated, scored, write_facts, write_lines
from tests.evaluation.lama.test_data import google_re, whole_lama
from trelm_ds.errors import UserError


def figures(*numbers: float) -> dict[str, float]:
    return {name: pytest.approx(number) for name, number in zip(("p_at_1", "p_at_10", "mrr"), numbers, strict=True)}


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
    result = evaluated(model, data, batch_size=2)
    part = result.summary["parts"]["trex"]
    # P1: paris, paris, rome, paris, rome are asked, the model says paris, then rome; P2: berlin, rome, berlin. After
    # rome the other words tie, of which paris and rome precede berlin.
    assert part["relations"] == {
        "P1": {
            "label": "label of P1",
            **figures(3 / 5, 1, (3 + 2 / 2) / 5),
            "majority_baseline": figures(3 / 5, 1, (3 + 2 / 2) / 5),
            "n_facts": 5,
            "skipped": {
                "duplicate": 1,
                "object_is_several_tokens": 1,
                "object_outside_vocabulary": 1,
                "prompt_too_long": 1,
                "mask_token_in_subject": 1,
            },
        },
        "P2": {
            "label": "label of P2",
            **figures(0, 1, (1 / 3 + 1 / 2 + 1 / 3) / 3),
            "majority_baseline": figures(2 / 3, 1, (1 + 1 + 1 / 2) / 3),
            "n_facts": 3,
            "skipped": {},
        },
    }
    assert part["p_at_1"] == pytest.approx((3 / 5 + 0) / 2)
    assert part["majority_baseline"]["p_at_1"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert (part["n_facts"], part["n_relations"], sum(part["skipped"].values())) == (8, 2, 5)
    assert part["micro"]["p_at_1"] == 3 / 8
    assert part["micro"]["majority_baseline"]["p_at_1"] == 5 / 8
    tiers = part["groups"]["tier"]
    assert {tier: (one["p_at_1"], one["majority_baseline"]["p_at_1"], one["n_facts"], one["n_relations"])
            for tier, one in tiers.items()} == {
        # P1: ana-paris, long-rome; P2: berlin twice
        "often": ((1 / 2 + 0) / 2, (1 / 2 + 1) / 2, 4, 2),
        "once": (2 / 3, 2 / 3, 3, 1),
        "graph_only": (0.0, 1.0, 1, 1),
    }  # fmt: skip
    summary = result.summary
    assert (summary["task"], summary["model"], summary["data"]) == ("lama", str(model), str(data))
    assert summary["options"] == {
        "vocabulary": None,
        "common_with": [],
        "multi_token": "skip",
        "uhn_model": None,
        "dataset": None,
        "batch_size": 2,
        "device": "cpu",
    }


def test_the_majority_object_scores_the_baseline(tmp_path: Path) -> None:
    """In every part and group, and in every figure if the model ranks all objects by frequency."""
    model = bert_folder(tmp_path / "model", ["rome", "paris", "oslo"])
    objects = ["rome", "rome", "rome", "paris", "paris", "oslo"]
    facts = [(f"ana {row}", obj, tier) for row, obj in enumerate(objects) for tier in ("often", "once")[row % 2 :][:1]]
    data = write_facts(tmp_path / "lama", {"P1": facts, "P2": [fact for fact in facts if fact[1] != "oslo"]})
    births = [google_re(f"bob {row}", obj) for row, obj in enumerate(objects)]
    write_lines(data / "Google_RE/place_of_birth_test.jsonl", births)
    sentences = [
        {"obj_label": obj, "pred": "AtLocation", "masked_sentences": [f"ana {row} is in [MASK] ."]}
        for row, obj in enumerate(objects)
    ]
    write_lines(data / "ConceptNet/test.jsonl", sentences)
    write_lines(data / "Squad/test.jsonl", sentences)
    parts = evaluated(model, data).summary["parts"]
    assert list(parts) == ["trex", "google_re", "conceptnet", "squad"]
    for part in parts.values():
        groups = [score for groups in part["groups"].values() for score in groups.values()]
        for score in [part, part["micro"], *part["relations"].values(), *groups]:
            assert {name: score[name] for name in ("p_at_1", "p_at_10", "mrr")} == score["majority_baseline"]
    assert parts["trex"]["p_at_1"] == (3 / 6 + 3 / 5) / 2
    assert parts["squad"]["mrr"] == pytest.approx((3 + 2 / 2 + 1 / 3) / 6)


def test_rank_ten_counts_and_eleven_does_not(tmp_path: Path) -> None:
    favourites = ["lies", "in", "is", "the", "home", "of", "ana", "bob", "cid", "paris", "rome"]
    model = bert_folder(tmp_path / "model", favourites)
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris"), ("bob", "rome")]})
    part = scored(model, data)
    assert (part["p_at_1"], part["p_at_10"], part["mrr"]) == (0, 1 / 2, pytest.approx((1 / 10 + 1 / 11) / 2))


def test_objects_of_several_tokens_are_reported_apart(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["rome", "old"])
    facts = [
        ("ana", "rome", "often"),
        ("bob", "old rome", "often"),
        ("cid", "new rome", "once"),
        ("eve", "old home of rome"),
    ]
    data = write_facts(tmp_path / "lama", {"P1": [*facts, ("dora", "old atlantis")], "P2": [("ana", "old rome")]})
    skipping = scored(model, data)
    part = scored(model, data, multi_token="mean-log-prob")
    assert skipping["skipped"] == {"object_is_several_tokens": 5}
    assert part["skipped"] == {"object_outside_vocabulary": 1}  # a token of "old atlantis" is unknown
    assert {name: part[name] for name in part if name not in ("skipped", "relations", "groups")} == {
        name: skipping[name] for name in skipping if name not in ("skipped", "relations", "groups")
    }
    assert part["groups"]["tier"] == skipping["groups"]["tier"]
    # P1, mean log-probability: old rome (2 + 1) / 2, new rome 2 / 2, old home of rome 3 / 4. P2 has one candidate.
    several = part["groups"]["object"]["multi_token"]
    assert {name: several[name] for name in ("p_at_1", "p_at_10", "mrr")} == figures(
        (1 / 3 + 1) / 2, 1, ((1 + 1 / 2 + 1 / 3) / 3 + 1) / 2
    )
    assert (several["n_facts"], several["n_relations"], several["majority_baseline"]["p_at_1"]) == (
        4,
        2,
        (1 / 3 + 1) / 2,
    )


def test_predictions(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris", "rome"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "Rome", "often"), ("bob", "old rome")]})
    one, several = evaluated(model, data, multi_token="mean-log-prob").predictions
    assert {name: one[name] for name in one if name not in ("top", "log_prob")} == {
        "part": "trex",
        "relation": "P1",
        "subject": "ana",
        "object": "Rome",
        "texts": ["ana lies in [MASK] ."],
        "tokens": 1,
        "rank": 2,
        "n_candidates": 27,
        "groups": {"tier": "often", "name": "uhn"},
    }
    assert [text for text, _ in one["top"][:2]] == ["paris", "rome"]
    assert len(one["top"]) == 10
    assert one["top"][1][1] == one["log_prob"] < one["top"][0][1] < 0
    assert (several["tokens"], several["n_candidates"], several["top"]) == (2, 1, [["old rome", several["log_prob"]]])


def test_every_part_and_empty_files(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["city", "rome"])
    parts = evaluated(model, whole_lama(tmp_path / "lama")).summary["parts"]
    assert {name: (part["n_facts"], part["n_relations"]) for name, part in parts.items()} == {
        "trex": (2, 1),
        "google_re": (2, 1),
        "conceptnet": (3, 2),
        "squad": (1, 1),
    }
    empty = parts["trex"]["relations"]["P2"]
    assert (empty["p_at_1"], empty["majority_baseline"]["mrr"], empty["n_facts"]) == (None, None, 0)
    assert parts["google_re"]["skipped"] == {"negative_judgment": 1, "object_outside_vocabulary": 1}
    assert parts["conceptnet"]["relations"]["IsA"]["p_at_1"] == 0.5
    assert set(parts["conceptnet"]["groups"]) == set()
    for name in ("P1.jsonl", "P2.jsonl.gz"):
        (tmp_path / "lama/TREx" / name).write_bytes(b"")
    parts = evaluated(model, tmp_path / "lama").summary["parts"]
    assert (parts["trex"]["p_at_1"], parts["trex"]["n_relations"], parts["trex"]["groups"]) == (None, 0, {})
    assert parts["squad"]["n_facts"] == 1


def test_nothing_to_ask_is_an_error(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "old rome")]})
    with pytest.raises(UserError, match=r"no fact can be asked of .*object_is_several_tokens': 1"):
        evaluated(model, data)
    (data / "TREx/P1.jsonl").write_text("")
    with pytest.raises(UserError, match=r"skipped: none, the files are empty"):
        evaluated(model, data)


def test_bad_options_are_named(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model", ["paris"])
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "paris")]})
    with pytest.raises(UserError, match="--batch-size: must be at least 1, got 0"):
        evaluated(model, data, batch_size=0)
    with pytest.raises(UserError, match="--device: 'abacus' is no device of torch"):
        evaluated(model, data, device="abacus")
    with pytest.raises(
        UserError, match=r"--common-with: .*nowhere: is not a folder; give a Hugging Face folder with a tokenizer"
    ):
        evaluated(model, data, common_with=(tmp_path / "nowhere",))
    with pytest.raises(UserError, match=r"--uhn-model: .*nowhere: holds no config.json"):
        evaluated(model, data, uhn_model=tmp_path / "nowhere")
