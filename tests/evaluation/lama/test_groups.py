"""Facts scored apart by how often the corpus mentions their subject, and by what the graph says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CITIES, PEOPLE, write_corpus
from tests.evaluation.lama.makers import bert_folder, evaluated, scored, write_facts, write_lines
from tests.logged import warns
from trelm_ds.corpus import PrepareOptions, prepare
from trelm_ds.errors import UserError
from trelm_ds.evaluation import format_lama
from trelm_ds.knowledge import KnowledgeGraph


def test_long_tail_subjects(tiny_dataset: Path, tmp_path: Path) -> None:
    qids, counts = (np.load(tiny_dataset / "entities" / f"{name}.npy") for name in ("qids", "counts"))
    rare, frequent = qids[counts < counts.mean()].tolist(), qids[counts >= counts.mean()].tolist()
    assert rare
    assert frequent
    never = max(len(PEOPLE) + len(CITIES), *qids.tolist()) + 1
    subjects = [f"Q{rare[0]}", f"Q{never}", f"Q{frequent[0]}", f"Q{10**11}", None]
    data = write_facts(tmp_path / "lama", {})
    objects = ["rome", "rome", "rome", "paris", "oslo"]
    records = [
        {"sub_label": f"ana {row}", "obj_label": obj, "sub_uri": subject}
        for row, (subject, obj) in enumerate(zip(subjects, objects, strict=True))
    ]
    write_lines(data / "TREx/P1.jsonl", records)
    model = bert_folder(tmp_path / "model", ["rome"])
    assert scored(model, data)["groups"] == {"name": scored(model, data)["groups"]["name"]}
    groups = scored(model, data, dataset=tiny_dataset)["groups"]["subject"]
    # Never mentioned is in the long tail; without an id a subject is in neither group.
    assert {name: (score["n_facts"], score["p_at_1"]) for name, score in groups.items()} == {
        "long_tail": (3, 2 / 3),
        "frequent": (1, 1.0),
    }
    assert groups["long_tail"]["majority_baseline"]["p_at_1"] == 2 / 3


def held_out_dataset(folder: Path) -> tuple[Path, list[list[str]]]:
    """People live in cities (P551). The first two facts are held out; of the second the city's mayor (P6) is known."""
    write_corpus(folder, documents=60)
    path = folder / "wikidata5m" / "wikidata5m_all_triplet.txt"
    facts = [line.split("\t") for line in path.read_text().splitlines()]
    with path.open("a") as stream:
        stream.write(f"{facts[1][2]}\tP6\t{facts[1][0]}\n")
    (folder / "held_out.tsv").write_text("".join("\t".join(fact) + "\n" for fact in facts[:2]))
    source, graph = folder / "corpus.jsonl", folder / "wikidata5m"
    hold_out = {"hold_out_facts": str(folder / "held_out.tsv"), "vocab_size": 200}
    prepare(PrepareOptions(source, graph, "train", folder / "dataset", **hold_out))
    return folder / "dataset", facts


def test_facts_of_the_graph_and_facts_held_out_of_it(tmp_path: Path) -> None:
    dataset, facts = held_out_dataset(tmp_path / "text")
    other_city = next(fact[2] for fact in facts if fact[2] != facts[2][2])
    asked = [
        (facts[0][0], facts[0][2], "rome"),
        (facts[1][0], facts[1][2], "paris"),
        *((fact[0], fact[2], "rome") for fact in facts[2:5]),
        (facts[2][0], other_city, "oslo"),
        ("Q77777", facts[0][2], "rome"),
        (f"Q{2**32 + int(facts[2][0][1:])}", facts[2][2], "oslo"),  # the same 32 bits as a trained one
        (facts[3][0], None, "rome"),
        (None, facts[3][2], "rome"),
    ]
    data = write_facts(tmp_path / "lama", {}, {"P551": "[X] lies in [Y] .", "P2": "[Y] is the home of [X] ."})
    records = [
        {"sub_label": f"ana {row}", "obj_label": obj, "sub_uri": subject, "obj_uri": uri}
        for row, (subject, uri, obj) in enumerate(asked)
    ]
    write_lines(data / "TREx/P551.jsonl", records)
    write_lines(data / "TREx/P2.jsonl", records[2:3])  # known, but not of this relation
    born = [{"sub_label": "bob", "obj_label": "rome", "sub_w": facts[2][0], "obj_w": facts[2][2]}]
    write_lines(data / "Google_RE/place_of_birth_test.jsonl", born)
    result = evaluated(bert_folder(tmp_path / "model", ["rome"]), data, dataset=dataset)
    groups = result.summary["parts"]["trex"]["groups"]["graph"]
    assert {name: (score["n_facts"], score["p_at_1"]) for name, score in groups.items()} == {
        "held_out": (1, 1.0),
        "derivable": (1, 0.0),
        "trained": (3, 1.0),
        "unknown": (4, 2 / 3),  # one of three, and the only one of the other relation
    }
    assert groups["unknown"]["majority_baseline"]["p_at_1"] == (2 / 3 + 1) / 2
    assert [record["groups"].get("graph") for record in result.predictions[-3:]] == [None, None, "unknown"]
    assert result.summary["parts"]["google_re"]["groups"]["graph"]["unknown"]["n_facts"] == 1
    table = format_lama(result.summary)
    assert "graph: held_out" in table
    assert "graph: derivable" in table


def test_a_dataset_without_held_out_facts_knows_trained_and_unknown_ones(tiny_dataset: Path, tmp_path: Path) -> None:
    data = write_facts(tmp_path / "lama", {}, {"P551": "[X] lies in [Y] ."})
    graph = KnowledgeGraph.load(tiny_dataset / "graph")
    head = int(np.argmax(np.diff(graph.out_offsets)))
    tail = graph.out_entities[graph.out_offsets[head]]
    trained = {"sub_uri": f"Q{graph.entities[head]}", "obj_uri": f"Q{graph.entities[tail]}"}
    inverse = {"sub_uri": trained["obj_uri"], "obj_uri": trained["sub_uri"]}
    labels = [{"sub_label": name, "obj_label": "rome"} for name in ("ana", "bob")]
    write_lines(data / "TREx/P551.jsonl", [labels[0] | trained, labels[1] | inverse])
    groups = scored(bert_folder(tmp_path / "model", ["rome"]), data, dataset=tiny_dataset)["groups"]["graph"]
    assert {name: score["n_facts"] for name, score in groups.items()} == {"trained": 1, "unknown": 1}


def test_subjects_without_an_id_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome")]})
    with warns("--dataset: no subject has a Wikidata id"):
        part = scored(bert_folder(tmp_path / "model", ["rome"]), data, dataset=tiny_dataset)
    assert "subject" not in part["groups"]


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    data = write_facts(tmp_path / "lama", {"P1": [("ana", "rome")]})
    with pytest.raises(UserError, match=r"--dataset: .* is no prepared dataset"):
        scored(tmp_path, data, dataset=tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"qids.npy: missing"):
        scored(tmp_path, data, dataset=tmp_path)
