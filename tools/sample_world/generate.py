"""Write the built-in sample world in the formats of a real run: a MediaWiki dump, Wikidata5M files and LAMA probes.

Usage: python tools/sample_world/generate.py --out DIR [--seed 0]
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections import Counter
from pathlib import Path

from corpus import Article, Sentence, build_articles
from mediawiki import render_export
from world import TIERS, Fact, World, load_world

MARKER = "sample_world.json"  # marks a folder as ours; only such a folder is replaced
MAX_EVIDENCES = 2
LONG_TAIL = 5  # an entity in at most this many sentences counts as long tail


def write_lines(path: Path, lines: list[str]) -> None:
    """Write lines with Unix line ends on every platform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def write_wiki(folder: Path, articles: list[Article], seed: int) -> None:
    """Write the MediaWiki dump."""
    folder.mkdir()
    export = render_export(articles, seed).encode()
    (folder / "sampleworld-pages-articles.xml.bz2").write_bytes(bz2.compress(export))


def write_graph(folder: Path, world: World) -> None:
    """Write the facts of the graph and all names in the layout of Wikidata5M."""
    triples = [f"{fact.subject.qid}\t{fact.relation.pid}\t{fact.object.qid}" for fact in world.graph]
    names, texts = [], []
    for entity in world.entities.values():
        label = () if entity.title == entity.label else (entity.label,)
        names.append("\t".join([entity.qid, entity.title, *label, *entity.aliases]))
        # Only the type: a fuller description would give away facts that must stay in the graph.
        texts.append(f"{entity.qid}\t{entity.title} is listed in the almanac under the heading {entity.type}.")
    relations = ["\t".join([rel.pid, rel.label, *rel.aliases]) for rel in world.relations.values()]
    write_lines(folder / "wikidata5m_all_triplet.txt", sorted(triples))
    write_lines(folder / "wikidata5m_entity.txt", names)
    write_lines(folder / "wikidata5m_relation.txt", relations)
    write_lines(folder / "wikidata5m_text.txt", texts)


def write_lama(folder: Path, world: World, sentences: list[Sentence]) -> None:
    """Write one probe per fact, with LAMA's keys and the fact's tier."""
    evidences: dict[Fact, list[dict[str, str]]] = {fact: [] for fact in world.facts}
    for sentence in sentences:
        fact = sentence.fact
        if fact is None or len(evidences[fact]) == MAX_EVIDENCES or fact.object.label not in sentence.plain:
            continue
        masked = sentence.plain.replace(fact.object.label, "[MASK]", 1)
        surfaces = {"sub_surface": fact.subject.label, "obj_surface": fact.object.label}
        evidences[fact].append({**surfaces, "masked_sentence": masked})
    probes: dict[str, list[str]] = {pid: [] for pid in world.relations}
    for fact, found in evidences.items():
        key = f"{fact.subject.qid} {fact.relation.pid} {fact.object.qid}"
        probe = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
            "obj_uri": fact.object.qid,
            "obj_label": fact.object.label,
            "sub_uri": fact.subject.qid,
            "sub_label": fact.subject.label,
            "predicate_id": fact.relation.pid,
            "evidences": found,
            "tier": fact.tier,
        }
        probes[fact.relation.pid].append(json.dumps(probe))
    for pid, lines in probes.items():
        write_lines(folder / "TREx" / f"{pid}.jsonl", lines)
    templates = [
        {"relation": r.pid, "template": r.probe, "label": r.label, "description": r.description, "type": r.cardinality}
        for r in world.relations.values()
    ]
    write_lines(folder / "relations.jsonl", [json.dumps(template) for template in templates])


def summarise(world: World, sentences: list[Sentence]) -> dict[str, int | float]:
    """Count what is printed at the end and kept in the marker file."""
    mentions = Counter(label for sentence in sentences for label in set(sentence.entities))
    tiers = Counter(fact.tier for fact in world.facts)
    words = [word for sentence in sentences for word in re.findall(r"\w+|[.,]", sentence.plain.lower())]
    return {
        "facts": len(world.facts),
        **{f"facts {tier}": tiers[tier] for tier in TIERS},
        "relations": len(world.relations),
        "entities": len(world.entities),
        "sentences": len(sentences),
        "tokens": len(words),
        "distinct words": len(set(words)),
        f"share of entities in <= {LONG_TAIL} sentences": round(
            sum(mentions[label] <= LONG_TAIL for label in world.entities) / len(world.entities), 3
        ),
    }


def generate(out: Path, seed: int) -> dict[str, int | float]:
    """Write the whole sample world to `out`, which appears in one rename."""
    world = load_world(seed)
    articles = build_articles(world, seed)
    sentences = [sentence for article in articles for sentence in article.sentences]
    summary = summarise(world, sentences)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new = staging / "new"
        new.mkdir()
        write_wiki(new / "wiki", articles, seed)
        write_graph(new / "wikidata5m", world)
        write_lama(new / "lama", world, sentences)
        write_lines(new / MARKER, [json.dumps({"seed": seed, **summary}, indent=1)])
        if out.exists():
            os.rename(out, staging / "old")
        os.rename(new, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return summary


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write; an existing one is replaced only if this tool wrote it",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the tiers and of every sentence")
    args = parser.parse_args()
    out = args.out.absolute()
    if os.path.lexists(out) and not (out / MARKER).is_file():
        print(f"error: {args.out} exists and was not written by this tool", file=sys.stderr)
        return 2
    for name, value in generate(out, args.seed).items():
        print(f"{name:<36} {value:>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
