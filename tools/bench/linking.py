"""Measure entity linking by hiding known anchors, on Wikipedia articles and on linked sentences.

python tools/bench/linking.py --wikidata5m DIR --excerpt DUMP --linked JSONL [--out docs/benchmarks]

Prints a table and writes linking.json and linking.png. Statistics come from nine tenths of the documents (by a hash of
their text); anchors are hidden in the rest. There are few articles, so several tenths take turns as the held-out part.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from lookup import compare_lookups

from trelm_ds.corpus import PrepareOptions, prepare
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.extract import read_documents, read_page_table
from trelm_ds.corpus.linking import (
    LinkDictionary,
    Linker,
    LinkingOptions,
    build_dictionary,
    count_anchors,
    count_occurrences,
    set_link_probabilities,
)
from trelm_ds.corpus.linking.evaluation import (
    LinkingEvaluation,
    LinkingScore,
    evaluate_linker,
    fold_of,
    most_common_sense,
)
from trelm_ds.corpus.titles import TitleResolver
from trelm_ds.knowledge import KnowledgeGraph, find_wikidata5m, read_names, read_triples

THRESHOLDS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8]
SYSTEMS = {
    "most common sense": None,
    "no votes (epsilon 1)": LinkingOptions(epsilon=1.0),
    "votes": LinkingOptions(graph_weight=0.0),
    "votes + graph 0.5": LinkingOptions(graph_weight=0.5),
    "votes, TAGME's mean": LinkingOptions(coherence_weight=0.5),
}
START, END = "<!-- linking-table -->", "<!-- /linking-table -->"
# English Wikipedia with Wikidata5M, to extrapolate memory.
ENWIKI = {"phrases": 30e6, "candidates": 40e6, "entities": 7e6, "links": 100e6, "edges": 20e6}


class World:
    """Wikidata5M and a work folder for dictionaries."""

    def __init__(self, wikidata5m: Path, work: Path) -> None:
        self.folder, self.files, self.work = wikidata5m, find_wikidata5m(wikidata5m), work
        self.graph = KnowledgeGraph.from_triples(read_triples(self.files.triples)[0])

    def names(self) -> Iterator[tuple[int, list[str]]]:
        return read_names(self.files.entity, "Q")

    def dictionary(self, documents: list[Document], name: str) -> tuple[LinkDictionary, dict]:
        """Build a dictionary with the statistics of `documents`; return it and the seconds of each step."""
        seconds, started = {}, time.perf_counter()
        count_anchors(documents).save(self.work / f"{name}-anchors")
        seconds["count_anchors"] = time.perf_counter() - started
        started = time.perf_counter()
        dictionary = build_dictionary([self.work / f"{name}-anchors"], self.names(), self.graph, self.work / name)
        seconds["build_dictionary"] = time.perf_counter() - started
        started = time.perf_counter()
        occurrences = count_occurrences(dictionary, documents)
        seconds["count_occurrences"] = time.perf_counter() - started
        return set_link_probabilities(self.work / name, [occurrences]), seconds


def read_corpus(path: Path, world: World, limit: int | None = None) -> list[Document]:
    """Read the documents of a dump or of linked JSONL as `trelm prepare` does, with QID numbers."""
    out = world.work / path.name
    prepare(PrepareOptions(path, world.folder, "train", out, part=(1, 1)))
    chunks = sorted((world.work / f".{path.name}.partial" / "documents").iterdir())
    found = list(islice((document for chunk in chunks for document in read_documents(chunk)), limit))
    titles = {str(m.target) for _, mentions in found for m in mentions if isinstance(m.target, str)}
    if not titles:
        return found
    redirects = {title: target for chunk in chunks for _, title, target in read_page_table(chunk) if target}
    resolver = TitleResolver(titles, redirects, world.names(), world.graph)
    documents = []
    for text, mentions in found:
        resolved = [(m, resolver.resolve(str(m.target))[0]) for m in mentions]
        documents.append(Document(text, [Mention(m.start, m.end, qid) for m, qid in resolved if qid is not None]))
    return documents


def evaluate(world: World, name: str, documents: list[Document], folds: int, limit: int | None) -> dict:
    """Evaluate every system with all and half of the anchors hidden, on at most `limit` held-out documents."""
    results = {
        hidden: {system: LinkingEvaluation([LinkingScore(threshold) for threshold in THRESHOLDS]) for system in SYSTEMS}
        for hidden in (1.0, 0.5)
    }
    for fold in range(folds):
        seen = [document for document in documents if fold_of(document.text) != fold]
        unseen = [document for document in documents if fold_of(document.text) == fold][:limit]
        dictionary, seconds = world.dictionary(seen, f"{name}-{fold}")
        for hidden, by_system in results.items():
            for system, options in SYSTEMS.items():
                scorer = Linker(dictionary, options) if options else most_common_sense(dictionary)
                evaluate_linker(scorer, dictionary, unseen, by_system[system], hidden)
    folder = world.work / f"{name}-0"
    sizes = {path.stem: path.stat().st_size for path in folder.iterdir() if path.suffix in (".npy", ".marisa")}
    return {
        "documents_in_statistics": len(seen),
        "characters_in_statistics": sum(len(document.text) for document in seen),
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "dictionary": memory(dictionary, sizes),
        "hidden": {
            str(hidden): {system: as_json(found) for system, found in by_system.items()}
            for hidden, by_system in results.items()
        },
    }


def as_json(found: LinkingEvaluation) -> dict:
    rows = []
    for score in found.scores:
        rates = {name: round(getattr(score, name), 4) for name in ("precision", "recall", "known_recall", "f1")}
        judged = max(score.judged, 1)
        rates["span_precision"] = round(score.right_span / judged, 4)
        rates["entity_precision"] = round(score.right_entity / judged, 4)
        rows.append({**asdict(score), **rates})
    return {
        "documents": found.documents,
        "characters": found.characters,
        "mentions_per_second": round(found.mentions_per_second),
        "characters_per_second": round(found.characters_per_second),
        "scores": rows,
    }


def memory(dictionary: LinkDictionary, sizes: dict[str, int]) -> dict:
    """Compute the bytes per row of the memory-mapped files, and extrapolate them to English Wikipedia."""
    kinds = {
        "phrases": ("phrases", "named", "words", "candidate_offsets", "link_probability"),
        "candidates": ("candidates", "commonness"),
        "entities": ("entities", "link_counts", "link_offsets", "edge_offsets"),
        "links": ("links",),
        "edges": ("edges",),
    }
    rows = {
        "phrases": len(dictionary.named),
        "candidates": len(dictionary.candidates),
        "entities": len(dictionary.entities),
        "links": len(dictionary.links),
        "edges": len(dictionary.edges),
    }
    bytes_per = {kind: sum(sizes[name] for name in names) / max(rows[kind], 1) for kind, names in kinds.items()}
    return {
        "rows": rows,
        "bytes": sum(sizes.values()),
        "bytes_per": {kind: round(value, 2) for kind, value in bytes_per.items()},
        "trie_bytes_per_phrase": round(sizes["phrases"] / rows["phrases"], 2),
        "enwiki_assumed_rows": ENWIKI,
        "enwiki_gigabytes": round(sum(bytes_per[kind] * count for kind, count in ENWIKI.items()) / 1e9, 2),
    }


def choose_threshold(articles: dict) -> float | None:
    """Choose the default of `LinkingOptions.minimum_rho`: the lowest at which nine in ten judged mentions are right."""
    rows = articles["hidden"]["0.5"]["votes"]["scores"]
    return next((row["threshold"] for row in rows if row["precision"] >= 0.9), None)


def print_table(name: str, result: dict) -> None:
    print(f"\n{name}: {result['documents_in_statistics']} documents in the statistics")
    for hidden, systems in result["hidden"].items():
        for system, found in systems.items():
            speed = f"{found['mentions_per_second']} mentions/s, {found['characters_per_second']} characters/s"
            print(f"  {system}, {float(hidden):.0%} of anchors hidden, {found['documents']} documents, {speed}")
            print("    rho   predicted  judged  precision  span  entity  recall  known recall  F1")
            for row in found["scores"]:
                print(
                    f"    {row['threshold']:.2f} {row['predicted']:>10} {row['judged']:>7}  {row['precision']:>9.3f}"
                    f" {row['span_precision']:.3f}  {row['entity_precision']:.3f}   {row['recall']:.3f}"
                    f"  {row['known_recall']:>12.3f}  {row['f1']:.3f}"
                )


def docs_table(report: dict) -> str:
    """Format the three main systems at the default threshold, for docs/preparation.md."""
    lines = [
        "| text, links hidden | system | precision | right span | right entity | recall | mentions/s per core |",
        "|---|---|---|---|---|---|---|",
    ]
    threshold = report["options"]["minimum_rho"]
    for name, result in report["results"].items():
        for hidden, systems in result["hidden"].items():
            for system in list(SYSTEMS)[:3]:
                found = systems[system]
                row = next(row for row in found["scores"] if row["threshold"] == threshold)
                rates = (row["precision"], row["span_precision"], row["entity_precision"], row["recall"])
                shown = " | ".join(f"{rate:.1%}" for rate in rates)
                lines.append(f"| {name}, {float(hidden):.0%} | {system} | {shown} | {found['mentions_per_second']:,} |")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    note = "The threshold of `most common sense` is on another scale: compare curves."
    return "\n".join([*lines, "", f"{note} {report['device']}; {versions}; {report['date']}."])


def write_docs(report: dict, path: Path) -> None:
    """Replace the table in the docs, between its markers."""
    before = path.read_text()
    head, tail = before.partition(START)[0], before.partition(END)[2]
    path.write_text(f"{head}{START}\n{docs_table(report)}\n{END}{tail}")


def plot(results: dict[str, dict], path: Path) -> None:
    """Plot precision against recall, one panel per corpus and share of hidden anchors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = (1.0, 0.5)
    figure, axes = pyplot.subplots(len(shares), len(results), figsize=(5 * len(results), 8), squeeze=False)
    for column, (name, result) in enumerate(results.items()):
        for row, share in enumerate(shares):
            panel = axes[row][column]
            for system, found in result["hidden"][str(share)].items():
                points = [score for score in found["scores"] if score["judged"]]
                recall, precision = ([point[key] for point in points] for key in ("recall", "precision"))
                panel.plot(recall, precision, marker=".", label=system)
            panel.set_title(f"{name}, {share:.0%} of anchors hidden", fontsize=10)
            panel.set_xlabel("recall of hidden anchors")
            panel.set_ylabel("precision where an anchor overlaps")
            panel.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikidata5m", type=Path, required=True, help="folder with the Wikidata5M files")
    parser.add_argument("--excerpt", type=Path, help="small MediaWiki dump")
    parser.add_argument("--linked", type=Path, help="linked JSONL")
    parser.add_argument("--limit", type=int, help="most lines to read of the linked JSONL")
    parser.add_argument("--evaluate", type=int, default=4000, help="held-out lines of the linked JSONL to evaluate on")
    parser.add_argument("--folds", type=int, default=10, help="number of tenths of the articles to hold out in turn")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder for linking.json and .png")
    parser.add_argument("--docs", type=Path, help="page whose table to update (docs/preparation.md)")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as work:
        world = World(options.wikidata5m, Path(work))
        linked = read_corpus(options.linked, world, options.limit) if options.linked else []
        articles = read_corpus(options.excerpt, world) if options.excerpt else []
        if articles:
            results["articles"] = evaluate(world, "articles", articles, options.folds, None)
        if linked:
            results["sentences"] = evaluate(world, "sentences", linked, 1, options.evaluate)
        lookups = compare_lookups(world.names(), [document.text for document in [*articles, *linked[:5000]]])
    for name, result in results.items():
        print_table(name, result)
    print(json.dumps(lookups, indent=1))
    report = {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, one process, no GPU",
        "versions": {name: version(name) for name in ("marisa-trie", "numpy", "scipy")},
        "date": datetime.date.today().isoformat(),
        "options": asdict(LinkingOptions()),
        "threshold_of_nine_in_ten": choose_threshold(results["articles"]) if "articles" in results else None,
        "lookup": lookups,
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "linking.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(results, options.out / "linking.png")
    if options.docs:
        write_docs(report, options.docs)


if __name__ == "__main__":
    main()
