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
TRAINED = {"often": range(6, 31), "once": range(1, 3), "graph_only": range(1)}  # tier -> statements of a fact
DERIVED = {1: "derived_inverse", 2: "derived_two_step"}  # facts that a rule combines -> tier
UNTRAINED = (*DERIVED.values(), "held_out")
NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"
Triple = tuple[str, str, str]
LINK = re.compile(r"\[\[(?!Category:)([^\]|]+)(?:\|([^\]]*))?\]\]")
MARKUP = re.compile(r"<ref[^>]*/>|<ref>.*?</ref>|<!--.*?-->|\{\{.*?\}\}|\[\[Category:.*?\]\]|^==[^\n]*==$", re.S | re.M)


def run_tool(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-B", TOOL, "--out", out, *options], capture_output=True, text=True)


def read_rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]


def upper_first(title: str) -> str:
    return title[0].upper() + title[1:]


def wordings() -> dict[str, tuple[str, bool]]:
    """Every wording of a fact with _ for both entities -> relation, and whether the subject comes first."""
    found = {}
    for relation, template in read_rows(TOOL.parent / "templates.tsv"):
        template = re.sub(r" ([.,])", r"\1", template)
        found[template.replace("[X]", "_").replace("[Y]", "_")] = (
            relation,
            template.index("[X]") < template.index("[Y]"),
        )
    return found


WORDINGS = wordings()


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
        marked = [
            sentence.strip()
            for text in self.articles.values()
            for sentence in re.split(r"(?<=\.)\s+", MARKUP.sub("", text).replace("'''", ""))
            if LINK.search(sentence)
        ]
        self.sentences = [
            (LINK.sub(lambda link: link[2] or link[1], sentence), frozenset(self.linked(sentence)))
            for sentence in marked
        ]
        self.stated = Counter(self.fact(sentence) for sentence in marked if len(self.linked(sentence)) == 2)

    def linked(self, sentence: str) -> list[str]:
        titles = [upper_first(link[1]) for link in LINK.finditer(sentence)]
        return [self.qid_of_title[self.redirects.get(title, title)] for title in titles]

    def fact(self, sentence: str) -> Triple:
        """What a sentence with two links states, told by its wording."""
        relation, subject_first = WORDINGS[LINK.sub("_", sentence)]
        first, second = self.linked(sentence)
        return (first, relation, second) if subject_first else (second, relation, first)

    def of_tiers(self, *tiers: str) -> set[Triple]:
        return {triple_of(probe) for probe in self.probes if probe["tier"] in tiers}


def triple_of(probe: dict[str, str]) -> Triple:
    return probe["sub_uri"], probe["predicate_id"], probe["obj_uri"]


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
    assert len(world.triples) >= 1500
    tiers = Counter(probe["tier"] for probe in world.probes)
    assert set(tiers) == {*TRAINED, *UNTRAINED}
    assert all(tiers[tier] >= 40 for tier in UNTRAINED)
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


def test_every_relation_has_every_trained_tier_and_one_answer_per_subject(world: SampleWorld) -> None:
    keys = Counter(triple_of(probe)[:2] for probe in world.probes)
    assert max(keys.values()) == 1
    tiers = Counter((probe["predicate_id"], probe["tier"]) for probe in world.probes)
    for relation in world.relations:
        shares = [tiers[relation["relation"], tier] for tier in TRAINED]
        assert all(share >= 0.15 * sum(shares) for share in shares)


def test_the_graph_has_the_trained_tiers_and_no_others(world: SampleWorld) -> None:
    assert len(world.triples) == len(set(world.triples))
    assert world.of_tiers(*TRAINED) == set(world.triples)
    assert not world.of_tiers(*UNTRAINED) & set(world.triples)


def test_statements_match_the_tiers(world: SampleWorld) -> None:
    for probe in world.probes:
        assert world.stated[triple_of(probe)] in TRAINED.get(probe["tier"], range(1)), probe
        assert bool(probe["evidences"]) <= (probe["tier"] in ("often", "once"))
    assert set(world.stated) <= set(world.triples)
    assert all(len(linked) <= 2 for _, linked in world.sentences)


def test_a_pair_of_entities_has_one_fact_and_perhaps_its_inverse(world: SampleWorld) -> None:
    inverses = {(pid, path[1:]) for pid, path in rules() if " " not in path}
    by_pair: dict[frozenset[str], list[Triple]] = {}
    for probe in world.probes:
        by_pair.setdefault(frozenset((probe["sub_uri"], probe["obj_uri"])), []).append(triple_of(probe))
    for first, *others in by_pair.values():
        for other in others:
            assert (other[0], other[2]) == (first[2], first[0])
            assert (other[1], first[1]) in inverses or (first[1], other[1]) in inverses
        assert len(others) <= 1
    assert max(map(len, by_pair.values())) == 2


def rules() -> list[list[str]]:
    return read_rows(TOOL.parent / "rules.tsv")


def followed(triples: set[Triple], path: str) -> dict[tuple[str, str], list[Triple]]:
    """Every (first, last) entity that a rule's path connects in the graph -> the facts on the way."""
    found: dict[tuple[str, str], list[Triple]] | None = None
    for step in path.split():
        ways: dict[str, list[tuple[str, Triple]]] = {}
        for head, relation, tail in triples:
            if relation == step.lstrip("^"):
                start, end = (tail, head) if step.startswith("^") else (head, tail)
                ways.setdefault(start, []).append((end, (head, relation, tail)))
        if found is None:
            found = {(start, end): [fact] for start, some in ways.items() for end, fact in some}
        else:
            found = {
                (start, end): [*facts, fact]
                for (start, middle), facts in found.items()
                for end, fact in ways.get(middle, ())
            }
    return found or {}


def test_derived_facts_follow_from_the_graph_by_rules_that_can_be_learned(world: SampleWorld) -> None:
    explained: dict[str, set[Triple]] = {tier: set() for tier in DERIVED.values()}
    for relation, path in rules():
        tier = DERIVED[len(path.split())]
        concluded = {(a, relation, b): facts for (a, b), facts in followed(set(world.triples), path).items()}
        derived = world.of_tiers(tier) & set(concluded)
        explained[tier] |= derived
        assert len(derived) > 30
        assert len(set(concluded) & set(world.triples)) >= len(concluded) / 2
        assert set(concluded) <= derived | set(world.triples)
        in_text = sum(all(world.stated[fact] for fact in concluded[triple]) for triple in derived)
        assert len(derived) / 10 < in_text < len(derived)
    assert explained == {tier: world.of_tiers(tier) for tier in DERIVED.values()}


def test_nothing_derives_a_held_out_fact(world: SampleWorld) -> None:
    near: dict[str, set[str]] = {}
    for head, _, tail in world.triples:
        near.setdefault(head, set()).add(tail)
        near.setdefault(tail, set()).add(head)
    for head, _, tail in world.of_tiers("held_out"):
        assert tail not in near.get(head, set())
        assert not near.get(head, set()) & near.get(tail, set())


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
