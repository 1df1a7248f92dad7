"""Measure how fast `trelm prepare` works on one core, stage by stage, and how its memory grows with the input.

python tools/bench/prepare.py --excerpt DUMP --linked JSONL --wikidata5m DIR --tokenizer DIR [--repeats 3]

Rates are per second of CPU time of one process. Memory is the peak resident size of the largest process of the real
command, at 1, 4 and 16 times the excerpt (as numbered parts). Prints the tables and writes them to docs/preparation.md
and, as JSON, to docs/benchmarks/prepare.json, with a projection to all of English Wikipedia.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import argparse
import datetime
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trelm_ds.corpus import PrepareOptions, pipeline, prepare  # noqa: E402
from trelm_ds.corpus.linking import build_dictionary  # noqa: E402
from trelm_ds.files import open_binary  # noqa: E402
from trelm_ds.knowledge import KnowledgeGraph, find_wikidata5m, read_names, read_triples  # noqa: E402

COPIES = (1, 4, 16)
CHUNK_MB = 2.0
STAGES = ("_documents", "_encoded_names", "_linker", "_sequences", "_assemble")
# Sizes of English Wikipedia's pages-articles and Wikidata5M, from their publishers' pages, rounded.
ENWIKI = {"xml_mb": 95_000, "triples": 20_614_279, "entity_lines": 4_815_483, "characters": 20e9, "tokens": 4.5e9}
CORES = 64
START, END = "<!-- prepare-table -->", "<!-- /prepare-table -->"


def stage_seconds(
    source: Path, options: argparse.Namespace, work: Path, **changes: Any
) -> tuple[dict[str, float], Any]:
    """Prepare once in this process; return the CPU seconds of every stage, and the manifest."""
    seconds: dict[str, float] = {}

    class Timed(pipeline.Pipeline):
        pass

    for name in STAGES:
        method = getattr(pipeline.Pipeline, name)

        def timed(self: Any, *arguments: Any, _method: Any = method, _name: str = name) -> Any:
            before = time.process_time()
            result = _method(self, *arguments)
            seconds[_name.strip("_")] = time.process_time() - before
            return result

        setattr(Timed, name, timed)

    def build(*arguments: Any, _method: Any = build_dictionary) -> Any:
        before = time.process_time()
        result = _method(*arguments)
        seconds["dictionary"] = time.process_time() - before
        return result

    asked = PrepareOptions(source, options.wikidata5m, str(options.tokenizer), work / "ds", **changes)
    with patch("trelm_ds.corpus.prepare.Pipeline", Timed), patch("trelm_ds.corpus.link_stage.build_dictionary", build):
        manifest, _ = prepare(asked)
    shutil.rmtree(work / "ds")
    return seconds, manifest


def measure_text(options: argparse.Namespace, work: Path) -> dict[str, list[float]]:
    """Measure the rates of the stages that process text."""
    with open_binary(options.excerpt) as stream:
        xml_mb = len(stream.read()) / 1e6
    entity_lines = sum(1 for _ in read_names(find_wikidata5m(options.wikidata5m).entity, "Q"))
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    for _ in range(options.repeats):
        seconds, manifest = stage_seconds(options.excerpt, options, work, link_entities=True)
        note("dump: MB of XML/s, read and parsed", xml_mb / seconds["documents"])
        note("dump: tokens/s, tokenised and linked", manifest.n_tokens / seconds["sequences"])
        note("dump: MB of XML/s, linker's counts", xml_mb / (seconds["linker"] - seconds["dictionary"]))
        note("entity lines/s, linker's dictionary", entity_lines / seconds["dictionary"])
        seconds, manifest = stage_seconds(options.excerpt, options, work)
        note("dump: tokens/s, tokenised", manifest.n_tokens / seconds["sequences"])
        seconds, manifest = stage_seconds(options.linked, options, work, max_length=128)
        note("linked JSONL: documents/s, read and checked", manifest.counts["documents"] / seconds["documents"])
        note("linked JSONL: tokens/s, tokenised", manifest.n_tokens / seconds["sequences"])
        note("entity lines/s, names encoded", entity_lines / seconds["encoded_names"])
        note("tokens/s, assembled into shards", manifest.n_tokens / seconds["assemble"])
    return rates


def measure_graph(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure the rates of reading Wikidata5M."""
    files = find_wikidata5m(options.wikidata5m)
    rates: dict[str, list[float]] = {"triples/s, read, sorted, CSR": [], "entity lines/s, names read": []}
    for _ in range(options.repeats):
        before = time.process_time()
        graph = KnowledgeGraph.from_triples(read_triples(files.triples)[0])
        rates["triples/s, read, sorted, CSR"].append(graph.n_triples / (time.process_time() - before))
        before = time.process_time()
        lines = sum(1 for _ in read_names(files.entity, "Q"))
        rates["entity lines/s, names read"].append(lines / (time.process_time() - before))
    return rates


def measure_memory(options: argparse.Namespace, work: Path) -> list[dict[str, float]]:
    """Measure the peak resident MB of the real command's largest process, with one and two workers."""
    rows = []
    for copies in COPIES:
        source = work / f"x{copies}"
        source.mkdir()
        for number in range(copies):
            shutil.copy(options.excerpt, source / f"part{number}.xml.bz2")
        row: dict[str, float] = {"copies": copies}
        for workers in (1, 2):
            command = [sys.executable, "-m", "trelm_ds", "prepare", "--source", source, "--out", work / "ds"]
            command += ["--wikidata5m", options.wikidata5m, "--tokenizer", options.tokenizer]
            command += ["--chunk-mb", str(CHUNK_MB), "--workers", str(workers)]
            row[f"peak_mb_{workers}"] = peak_of([str(part) for part in command])
            shutil.rmtree(work / "ds")
        rows.append(row)
        shutil.rmtree(source)
    return rows


def peak_of(command: list[str]) -> float:
    """Run a command and return the peak resident MB of its largest process."""
    script = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL).returncode; print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    found = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, cwd=ROOT)
    code, kilobytes = map(int, found.stdout.split())
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return kilobytes / 1000


def project(rates: dict[str, float]) -> dict[str, float]:
    """Project the hours for English Wikipedia with Wikidata5M, for parallel and serial stages."""
    core_seconds = {
        "reading and parsing": ENWIKI["xml_mb"] / rates["dump: MB of XML/s, read and parsed"],
        "tokenising": ENWIKI["tokens"] / rates["dump: tokens/s, tokenised"],
    }
    linking = {
        "linker's counts": ENWIKI["xml_mb"] / rates["dump: MB of XML/s, linker's counts"],
        "linking": ENWIKI["tokens"] / rates["dump: tokens/s, tokenised and linked"] - core_seconds["tokenising"],
    }
    alone = {
        "triples": ENWIKI["triples"] / rates["triples/s, read, sorted, CSR"],
        "names read": ENWIKI["entity_lines"] / rates["entity lines/s, names read"],
        "names encoded": ENWIKI["entity_lines"] / rates["entity lines/s, names encoded"],
        "assembling": ENWIKI["tokens"] / rates["tokens/s, assembled into shards"],
    }
    dictionary = ENWIKI["entity_lines"] / rates["entity lines/s, linker's dictionary"]
    serial = sum(alone.values())
    hours = {f"{name}, core hours": seconds / 3600 for name, seconds in (core_seconds | linking).items()}
    hours |= {f"{name}, hours in one process": seconds / 3600 for name, seconds in alone.items()}
    hours["linker's dictionary, hours in one process"] = dictionary / 3600
    hours[f"all without the linker, hours on {CORES} cores"] = (sum(core_seconds.values()) / CORES + serial) / 3600
    both = sum(core_seconds.values()) + sum(linking.values())
    hours[f"all with the linker, hours on {CORES} cores"] = (both / CORES + serial + dictionary) / 3600
    return hours


def show(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def tables(report: dict[str, Any]) -> str:
    lines = ["| per core and second of CPU time | median (least - most) |", "|---|---|"]
    for name, values in report["rates"].items():
        lines.append(f"| {name} | {show(statistics.median(values))} ({show(min(values))} - {show(max(values))}) |")
    lines += ["", "| input | peak MB, 1 process | peak MB of a process, 2 workers |", "|---|---|---|"]
    lines += [f"| {row['copies']} x | {row['peak_mb_1']:.0f} | {row['peak_mb_2']:.0f} |" for row in report["memory"]]
    lines += ["", "| English Wikipedia and Wikidata5M, projected | hours |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["projection"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join([*lines, "", f"{report['device']}; {versions}; {report['date']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--excerpt", type=Path, required=True, help="MediaWiki dump of a few MB")
    parser.add_argument("--linked", type=Path, required=True, help="linked JSONL")
    parser.add_argument("--wikidata5m", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "benchmarks" / "prepare.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "preparation.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure_text(options, Path(folder)) | measure_graph(options)
        memory = measure_memory(options, Path(folder))
    report = {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("mwparserfromhell", "tokenizers", "numpy", "marisa-trie")},
        "date": datetime.date.today().isoformat(),
        "rates": rates,
        "memory": memory,
        "assumed_sizes": ENWIKI,
        "projection": project({name: statistics.median(values) for name, values in rates.items()}),
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    text = tables(report)
    print(text)
    if options.docs.is_file() and START in (before := options.docs.read_text()):
        head, tail = before.partition(START)[0], before.partition(END)[2]
        options.docs.write_text(f"{head}{START}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
