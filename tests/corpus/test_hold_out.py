"""`prepare --hold-out-facts`: triples leave the graph, and nothing else changes."""

from __future__ import annotations

import dataclasses
import gzip
import random
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.conftest import write_corpus
from tests.e2e.launch import trelm
from tests.logged import warns
from trelm_ds.corpus import GRAPH_FOLDER, PrepareOptions, missing_parts, prepare
from trelm_ds.errors import UserError
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.shards import HELD_OUT_FACTS, Manifest, verify

Triple = tuple[int, int, int]
HELD_OUT, CONNECTED = "graph: facts held out", "graph: facts held out, another fact connects the two"
TRIPLES = "wikidata5m_all_triplet.txt"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People live in cities; of some cities a person is the mayor, who lives there."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=60)
    path = folder / "wikidata5m" / TRIPLES
    lines = path.read_text().splitlines()
    heads, tails = [line.split("\t")[0] for line in lines], [line.split("\t")[2] for line in lines]
    lines += [f"{city}\tP6\t{person}" for person, city in list(zip(heads, tails, strict=True))[::4]]
    path.write_text("".join(line + "\n" for line in lines))
    return folder


def options(corpus: Path, out: Path, **changes: object) -> PrepareOptions:
    values = {"source": corpus / "corpus.jsonl", "wikidata5m": corpus / "wikidata5m", "tokenizer": "train"}
    return PrepareOptions(**values | {"out": out, "max_length": 32, "vocab_size": 200, "min_words": 4} | changes)  # type: ignore[arg-type]


def refused(options: PrepareOptions) -> str:
    with pytest.raises(UserError) as error:
        prepare(options)
    assert "\n" not in str(error.value)
    assert not options.out.exists()
    return str(error.value)


def triples_of(path: Path) -> set[Triple]:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {(int(head[1:]), int(relation[1:]), int(tail[1:])) for head, relation, tail in rows}


def graph_of(dataset: Path) -> set[Triple]:
    graph = KnowledgeGraph.load(dataset / GRAPH_FOLDER)
    found = set()
    for row, head in enumerate(graph.entities.tolist()):
        for edge in range(graph.out_offsets[row], graph.out_offsets[row + 1]):
            relation, tail = graph.relations[graph.out_relations[edge]], graph.entities[graph.out_entities[edge]]
            found.add((head, int(relation), int(tail)))
    return found


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_share_leaves_the_graph_and_nothing_else_changes(corpus: Path, tmp_path: Path) -> None:
    whole, _ = prepare(options(corpus, tmp_path / "whole"))
    manifest, _ = prepare(options(corpus, tmp_path / "ds", hold_out_facts="0.3"))
    assert whole is not None
    assert manifest is not None
    everything, held_out = triples_of(corpus / "wikidata5m" / TRIPLES), triples_of(tmp_path / "ds" / HELD_OUT_FACTS)
    kept = graph_of(tmp_path / "ds")
    assert graph_of(tmp_path / "whole") == everything
    assert kept == everything - held_out
    assert held_out < everything
    assert 5 < len(held_out) < 25
    pairs = {frozenset((head, tail)) for head, _, tail in kept}
    connected = [frozenset((head, tail)) in pairs for head, _, tail in held_out]
    assert 0 < sum(connected) < len(connected)
    assert (manifest.counts[HELD_OUT], manifest.counts[CONNECTED]) == (len(held_out), sum(connected))
    assert manifest.counts["graph: triples"] == len(kept)
    before, after = content(tmp_path / "whole"), content(tmp_path / "ds")
    changed = {name.split("/")[0] for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {"graph", "names", "README.md", "manifest.json", HELD_OUT_FACTS}
    assert "## Facts held out" in after["README.md"].decode()
    assert verify(tmp_path / "ds")[1] == []
    (tmp_path / "ds" / HELD_OUT_FACTS).write_text("Q1\tP1\tQ1\n")
    assert HELD_OUT_FACTS in "".join(verify(tmp_path / "ds")[1])


def test_without_the_option_a_dataset_is_what_it_was(corpus: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(options(corpus, tmp_path / "ds"))
    assert manifest is not None
    assert set(manifest.request) == {
        "kind", "sources", "tokenizer", "max_length", "shard_mb", "unit", "min_words", "link_entities", "max_malformed",
        "license",
    }  # fmt: skip
    assert {role.split("/")[0] for role in manifest.request["sources"]} == {"text", "graph"}
    assert not [name for name in manifest.counts if "held out" in name or "hold out" in name]
    assert HELD_OUT_FACTS not in manifest.files
    assert "held out" not in (tmp_path / "ds" / "README.md").read_text()


def test_the_draw_is_the_same_in_any_order_and_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    prepare(options(corpus, tmp_path / "ds", hold_out_facts="0.3", hold_out_seed=0))
    for part in (2, 1):
        prepare(options(corpus, tmp_path / "parts", hold_out_facts="0.30", part=(part, 2), chunk_mb=0.002))
    merge = options(corpus, tmp_path / "parts", hold_out_facts="0.30", merge=True, chunk_mb=0.002, workers=2)
    prepare(merge)
    assert content(tmp_path / "parts") == content(tmp_path / "ds")
    assert missing_parts(dataclasses.replace(merge, merge=False), 2) == []
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for path in (corpus / "wikidata5m").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        random.Random(0).shuffle(lines)
        (shuffled / path.name).write_text("".join(lines))
    prepare(options(corpus, tmp_path / "other", hold_out_facts="0.3", wikidata5m=shuffled))
    assert triples_of(tmp_path / "other" / HELD_OUT_FACTS) == triples_of(tmp_path / "ds" / HELD_OUT_FACTS)
    assert not prepare(options(corpus, tmp_path / "ds", hold_out_facts="0.3"))[1]
    for change in ({"hold_out_seed": 1}, {"hold_out_facts": "0.2"}, {"hold_out_facts": None}):
        with pytest.raises(UserError, match="another request"):
            prepare(options(corpus, tmp_path / "ds", **{"hold_out_facts": "0.3"} | change))


def test_finished_pieces_of_another_draw_are_not_taken(corpus: Path, tmp_path: Path) -> None:
    with patch("trelm_ds.corpus.pipeline.ShardWriter", side_effect=UserError("on purpose")):
        for changes in ({}, {"hold_out_facts": "0.3"}):
            refused(options(corpus, tmp_path / "ds", **changes))
            assert (tmp_path / ".ds.partial" / "graph" / "done.json").is_file()
    for name in ("ds", "fresh"):
        prepare(options(corpus, tmp_path / name, hold_out_facts="0.3", hold_out_seed=7))
    assert content(tmp_path / "ds") == content(tmp_path / "fresh")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_says_which(corpus: Path, tmp_path: Path, zipped: bool) -> None:
    everything = triples_of(corpus / "wikidata5m" / TRIPLES)
    wanted = sorted(everything)[5:15]
    lines = [f"Q{head}\tP{relation}\tQ{tail}\n" for head, relation, tail in [*wanted, wanted[0], (1, 2, 3), (99, 1, 1)]]
    text = "".join(reversed(lines)).encode()
    path = tmp_path / ("facts.tsv.gz" if zipped else "facts.tsv")
    path.write_bytes(gzip.compress(text, mtime=0) if zipped else text)
    asked = options(corpus, tmp_path / "ds", hold_out_facts=str(path))
    with warns("facts.tsv.*: 2 of 12 triples are not in the graph"):
        manifest, _ = prepare(asked)
    assert manifest is not None
    assert manifest.counts["graph: facts to hold out that are not in it"] == 2
    assert triples_of(tmp_path / "ds" / HELD_OUT_FACTS) == set(wanted)
    assert graph_of(tmp_path / "ds") == everything - set(wanted)
    again = options(corpus, tmp_path / "again", hold_out_facts=str(tmp_path / "ds" / HELD_OUT_FACTS))
    prepare(again)
    assert Manifest.load(tmp_path / "again").fingerprint == manifest.fingerprint
    assert not prepare(asked)[1]
    path.write_bytes(gzip.compress(text[:-13], mtime=0) if zipped else text[:-13])
    with pytest.raises(UserError, match=r"another request \(sources\)"):
        prepare(asked)


def test_the_held_out_facts_are_part_of_the_fingerprint(corpus: Path, tmp_path: Path) -> None:
    """Two datasets may have the same graph and probe other facts."""
    more = tmp_path / "wikidata5m"
    more.mkdir()
    for path in (corpus / "wikidata5m").iterdir():
        (more / path.name).write_bytes(path.read_bytes())
    with (more / TRIPLES).open("a") as stream:
        stream.write("Q1\tP6\tQ2\n")
    first = (more / TRIPLES).read_text().splitlines()[0]
    (tmp_path / "one.tsv").write_text(f"{first}\n")
    (tmp_path / "two.tsv").write_text(f"{first}\nQ1\tP6\tQ2\n")
    one, _ = prepare(options(corpus, tmp_path / "one", hold_out_facts=str(tmp_path / "one.tsv")))
    two, _ = prepare(options(corpus, tmp_path / "two", hold_out_facts=str(tmp_path / "two.tsv"), wikidata5m=more))
    assert one is not None
    assert two is not None
    assert graph_of(tmp_path / "one") == graph_of(tmp_path / "two")
    arrays = [{name: about for name, about in made.files.items() if name.endswith(".npy")} for made in (one, two)]
    assert arrays[0] == arrays[1]
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("", "facts.tsv: holds no triple"),
        ("Q1\tP6\tQ2\nQ1 P6 Q2\n", "facts.tsv:2: expected head<TAB>relation<TAB>tail.*1 of 2 records malformed, none"),
        ("Q1\tP6\n", "facts.tsv:1: expected head<TAB>relation<TAB>tail"),
        ("Q1\tQ6\tQ2\n", "facts.tsv:1: expected an id such as P42, got 'Q6'"),
        ("Q1\tP6\tQ2\n", "--hold-out-facts: .*facts.tsv holds out none of 50 triples"),
    ],
)
def test_files_that_cannot_be_used_are_named(corpus: Path, tmp_path: Path, facts: str, message: str) -> None:
    (tmp_path / "facts.tsv").write_text(facts)
    asked = options(corpus, tmp_path / "ds", hold_out_facts=str(tmp_path / "facts.tsv"), max_malformed=0.9)
    with pytest.raises(UserError, match=message):
        prepare(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_out_facts": "0"}, "--hold-out-facts: a share must lie between 0 and 1, got 0"),
        ({"hold_out_facts": "1.5"}, "--hold-out-facts: a share must lie between 0 and 1, got 1.5"),
        ({"hold_out_facts": "nan"}, "--hold-out-facts: a share must lie between 0 and 1, got nan"),
        ({"hold_out_facts": "nowhere.tsv"}, "--hold-out-facts: nowhere.tsv is neither a share such as 0.1 nor a file"),
        ({"hold_out_facts": "1e-9"}, "--hold-out-facts: 1e-9 holds out none of 50 triples"),
        ({"hold_out_facts": "0.999999"}, "--hold-out-facts: 0.999999 holds out all of 50 triples"),
        ({"hold_out_facts": "0.1", "hold_out_seed": -1}, "--hold-out-seed: must be at least 0, got -1"),
        ({"hold_out_seed": 3}, "--hold-out-seed: goes with --hold-out-facts SHARE only"),
    ],
)
def test_values_that_cannot_be_used_are_named(corpus: Path, tmp_path: Path, changes: dict, message: str) -> None:
    assert message in refused(options(corpus, tmp_path / "ds", **changes))


def test_on_the_command_line(corpus: Path, tmp_path: Path) -> None:
    command = ["prepare", "--source", corpus / "corpus.jsonl", "--wikidata5m", corpus / "wikidata5m"]
    command += ["--tokenizer", "train", "--vocab-size", 200, "--out", tmp_path / "ds"]
    bad = trelm(*command, "--hold-out-facts", "2")
    assert bad.returncode == 2
    assert bad.stderr.splitlines()[-1] == "trelm: error: --hold-out-facts: a share must lie between 0 and 1, got 2"
    good = trelm(*command, "--hold-out-facts", "0.3", "--hold-out-seed", "4")
    assert good.returncode == 0, good.stderr
    held_out = triples_of(tmp_path / "ds" / HELD_OUT_FACTS)
    assert f"{len(held_out)}  graph: facts held out\n" in good.stdout
    assert f"{len(held_out)} of 50 triples are held out of the graph" in good.stderr
    assert Manifest.load(tmp_path / "ds").request["hold_out_seed"] == 4
