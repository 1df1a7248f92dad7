"""The built-in sample world keeps its promises: true formats, tiers that do not leak, determinism."""

from __future__ import annotations

import bz2
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "sample_world" / "generate.py"
NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"
LINK = re.compile(r"\[\[(?!Category:)([^\]|]+)(?:\|([^\]]*))?\]\]")
MARKUP = re.compile(r"<ref[^>]*/>|<ref>.*?</ref>|<!--.*?-->|\{\{.*?\}\}|\[\[Category:.*?\]\]|^==[^\n]*==$", re.S | re.M)


def run_tool(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-B", TOOL, "--out", out, *options], capture_output=True, text=True)


def read_rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]


def upper_first(title: str) -> str:
    return title[0].upper() + title[1:]


class SampleWorld:
    """A generated folder, read back without the generator's own code."""

    def __init__(self, folder: Path) -> None:
        self.probes = [
            json.loads(line)
            for path in sorted((folder / "lama" / "TREx").glob("P*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        self.relations = [json.loads(line) for line in (folder / "lama" / "relations.jsonl").read_text().splitlines()]
        graph = folder / "wikidata5m"
        self.triples = [tuple(row) for row in read_rows(graph / "wikidata5m_all_triplet.txt")]
        self.names = {qid: names for qid, *names in read_rows(graph / "wikidata5m_entity.txt")}
        self.texts = read_rows(graph / "wikidata5m_text.txt")
        export = bz2.decompress((folder / "wiki" / "sampleworld-pages-articles.xml.bz2").read_bytes())
        self.articles: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        for page in ElementTree.fromstring(export).iter(f"{NAMESPACE}page"):
            if page.findtext(f"{NAMESPACE}ns") != "0":
                continue
            title, redirect = page.findtext(f"{NAMESPACE}title"), page.find(f"{NAMESPACE}redirect")
            if redirect is not None:
                self.redirects[title] = redirect.get("title")
            else:
                self.articles[title] = page.findtext(f"{NAMESPACE}revision/{NAMESPACE}text")
        self.qid_of_title = {names[0]: qid for qid, names in self.names.items()}
        self.sentences = [
            (LINK.sub(lambda link: link[2] or link[1], sentence), self.linked(sentence))
            for text in self.articles.values()
            for sentence in re.split(r"(?<=\.)\s+", MARKUP.sub("", text).replace("'''", ""))
            if LINK.search(sentence)
        ]

    def linked(self, sentence: str) -> frozenset[str]:
        titles = [upper_first(link[1]) for link in LINK.finditer(sentence)]
        return frozenset(self.qid_of_title[self.redirects.get(title, title)] for title in titles)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "world"
    result = run_tool(out)
    assert result.returncode == 0, result.stderr
    assert "graph_only" in result.stdout
    return out


@pytest.fixture(scope="module")
def world(folder: Path) -> SampleWorld:
    return SampleWorld(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_and_own_folder_is_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert run_tool(out, "--seed", "1").returncode == 0
    other = contents(out)
    assert run_tool(out, "--seed", "0").returncode == 0
    assert contents(out) == contents(folder)
    assert other != contents(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_foreign_output_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "mine"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("keep")
    else:
        out.write_text("keep")
    result = run_tool(out)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert (out / "thesis.txt" if kind == "folder" else out).read_text() == "keep"


def test_promised_counts(world: SampleWorld) -> None:
    mentions = Counter(qid for _, linked in world.sentences for qid in linked)
    words = Counter(word for text, _ in world.sentences for word in re.findall(r"\w+", text.lower()))
    assert len(world.probes) == len(world.triples) >= 1500
    assert len(world.relations) >= 12
    assert len(world.names) >= 1000
    assert 8_000 <= len(world.sentences) <= 12_000
    assert len(words) <= 4500
    assert sum(mentions[qid] <= 5 for qid in world.names) >= 0.7 * len(world.names)


def test_names_are_unique(world: SampleWorld) -> None:
    owners: dict[str, set[str]] = {}
    for qid, names in world.names.items():
        assert re.fullmatch(r"Q[0-9]+", qid)
        for name in names:
            owners.setdefault(name.lower(), set()).add(qid)
    assert all(len(qids) == 1 for qids in owners.values())
    assert {row[0] for row in world.texts} == set(world.names)


def test_every_relation_has_every_tier_and_one_answer_per_subject(world: SampleWorld) -> None:
    keys = Counter((head, relation) for head, relation, _ in world.triples)
    assert max(keys.values()) == 1
    tiers = Counter((probe["predicate_id"], probe["tier"]) for probe in world.probes)
    for relation in world.relations:
        shares = [tiers[relation["relation"], tier] for tier in ("often", "once", "graph_only")]
        assert all(share >= 0.15 * sum(shares) for share in shares)
    probed = {(probe["sub_uri"], probe["predicate_id"], probe["obj_uri"]) for probe in world.probes}
    assert probed == set(world.triples)


def test_statements_match_the_tiers(world: SampleWorld) -> None:
    stated = Counter(linked for _, linked in world.sentences if len(linked) == 2)
    allowed = {"often": range(6, 31), "once": range(1, 3), "graph_only": range(1)}
    for probe in world.probes:
        pair = frozenset((probe["sub_uri"], probe["obj_uri"]))
        assert stated[pair] in allowed[probe["tier"]], probe
        assert bool(probe["evidences"]) <= (probe["tier"] != "graph_only")
    assert all(len(linked) <= 2 for _, linked in world.sentences)


def test_every_entity_occurs_and_answers_occur_three_times(world: SampleWorld) -> None:
    mentions = Counter(qid for _, linked in world.sentences for qid in linked)
    assert all(mentions[qid] for qid in world.names)
    assert all(mentions[probe["obj_uri"]] >= 3 for probe in world.probes)
    single = [probe for probe in world.probes if " " not in probe["obj_label"]]
    assert len(single) >= 0.95 * len(world.probes)


def test_probe_wording_is_not_in_the_corpus(world: SampleWorld) -> None:
    texts = {text.lower() for text, _ in world.sentences}
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    template = {relation["relation"]: relation["template"] for relation in world.relations}
    wordings = [row[1] for row in read_rows(TOOL.parent / "templates.tsv")] + list(template.values())
    assert len(set(wordings)) == len(wordings)
    assert all(set(re.findall(r"[a-z]+", probe.lower())) <= words | {"x", "y"} for probe in template.values())
    for probe in world.probes:
        sentence = template[probe["predicate_id"]].replace("[X]", probe["sub_label"]).replace("[Y]", probe["obj_label"])
        assert sentence.replace(" .", ".").lower() not in texts


def test_links_resolve(world: SampleWorld) -> None:
    through_redirect = piped = 0
    for text in world.articles.values():
        for link in LINK.finditer(text):
            title = upper_first(link[1])
            qid = world.qid_of_title[world.redirects.get(title, title)]
            through_redirect += title in world.redirects
            piped += link[2] is not None
            assert title in world.articles or title in world.redirects
            assert upper_first(link[1]) in map(upper_first, world.names[qid])
            assert upper_first(link[2] or link[1]) in map(upper_first, world.names[qid])
    assert through_redirect > 100
    assert piped > 100
    assert set(world.redirects.values()) <= set(world.articles)
