"""Measure how fast the loader delivers tokens on one core, against plain webdataset and tokenising on the fly.

python tools/bench/loader.py                                   the sample world
python tools/bench/loader.py --source text.jsonl.gz --wikidata5m wikidata5m/ --tokenizer bert-base-uncased/

Prepares two datasets from the source with `trelm prepare` in a temporary folder: short (one sequence per sentence) and
long (512 tokens). Every contender delivers the same sequences as int64 tokens and cu_seqlens, in this process, on one
thread; rates are per second of CPU time. Contenders take turns within each repeat. Prints the tables and writes them to
docs/loader.md and, as JSON, to docs/benchmarks/loader.json.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import argparse
import datetime
import gzip
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trelm_ds.batches import Annotator, Masker, Step, StepDataset  # noqa: E402
from trelm_ds.config import Config, MaskingConfig  # noqa: E402
from trelm_ds.corpus import (  # noqa: E402
    TOKENIZER_FOLDER,
    TokenizerInfo,
    inverse_marker,
    load_tokenizer,
    word_starts,
)
from trelm_ds.shards import BLOCK_SEQUENCES, SampleOrder, ShardReader, Substitution  # noqa: E402

BATCH, BUDGET, WINDOW = 256, 16384, 16
KNOWLEDGE = "loader, with masks and knowledge"
START, END = "<!-- loader-table -->", "<!-- /loader-table -->"


def prepare_datasets(arguments: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Prepare the short and the long dataset."""
    source, graph, tokenizer = arguments.source, arguments.wikidata5m, arguments.tokenizer
    if source is None:
        run(ROOT / "tools" / "sample_world" / "generate.py", "--out", work / "world")
        source, graph, tokenizer = work / "world" / "wiki", work / "world" / "wikidata5m", "train"
    if ".jsonl" not in source.name:
        joined = source
    else:
        joined = work / "joined.jsonl"
        join_lines(source, joined)
    made = {}
    for name, text, options in (
        ("short", source, ("--unit", "sentence", "--max-length", 128)),
        ("long", joined, ("--unit", "document", "--max-length", 512)),
    ):
        made[name] = work / name
        common = ("--wikidata5m", graph, "--tokenizer", tokenizer, "--out", made[name])
        run("-m", "trelm_ds", "prepare", "--source", text, *common, *options)
    return made


def run(*command: object) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, command)], check=True, env=environment, stdout=subprocess.DEVNULL)


def join_lines(source: Path, out: Path, lines: int = 200) -> None:
    """Write linked JSONL in which each document joins `lines` consecutive documents of the source."""
    texts: list[str] = []
    mentions: list[dict[str, Any]] = []
    length = 0
    opener = gzip.open if source.suffix == ".gz" else open
    with opener(source, "rt") as stream, out.open("w") as target:

        def flush() -> None:
            target.write(json.dumps({"text": " ".join(texts), "mentions": mentions}) + "\n")

        for line in stream:
            document = json.loads(line)
            moved = [m | {"start": m["start"] + length, "end": m["end"] + length} for m in document["mentions"]]
            mentions += moved
            texts.append(document["text"])
            length += len(document["text"]) + 1
            if len(texts) == lines:
                flush()
                texts, mentions, length = [], [], 0
        if texts:
            flush()


def no_masks(tokens: np.ndarray, *_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask nothing, as the other contenders do."""
    return tokens, np.zeros(0, dtype=np.int64)


def open_loader(
    dataset: Path, masker: Any = no_masks, ranks: int = 1, annotator: Annotator | None = None
) -> StepDataset:
    """Open the loader of the first of `ranks` ranks."""
    reader = ShardReader(dataset, WINDOW + BATCH * ranks // BLOCK_SEQUENCES + 8)
    order = SampleOrder(reader.block_sizes, 0, WINDOW)
    substitution = Substitution(reader, 0, 0.0)
    return StepDataset(
        reader=reader,
        order=order,
        masker=masker,
        substitution=substitution,
        global_batch_size=BATCH * ranks,
        micro_batch_tokens=BUDGET,
        rank=0,
        world_size=ranks,
        annotator=annotator,
    )


def read_steps(loader: StepDataset, steps: int) -> int:
    """Read steps; return the number of tokens without queries."""
    tokens = 0
    for step in range(steps):
        item = loader[step]
        assert isinstance(item, Step)
        tokens += sum(int(batch.cu_seqlens[batch.n_sequences]) for batch in item.micro_batches)
    return tokens


def packed(sequences: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(tokens) for tokens in sequences])
    tokens = np.concatenate(sequences).astype(np.int64)
    return torch.from_numpy(tokens), torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def write_plain_tars(loader: StepDataset, steps: int, folder: Path) -> list[str]:
    """Write the sequences of those steps in their order, one tokenised sample per tar member."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/plain-%06d.tar", maxcount=20_000, verbose=0) as writer:
        ids = loader.order.samples(0, steps * BATCH)[1]
        for number, tokens in enumerate(loader.reader.tokens(ids)):
            writer.write({"__key__": f"{number:08d}", "tokens.npy": tokens})
    return sorted(str(path) for path in folder.glob("*.tar"))


def read_plain_tars(urls: list[str]) -> int:
    import webdataset

    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("tokens.npy")
    batches = pipeline.batched(BATCH, collation_fn=lambda rows: packed([row[0] for row in rows]))
    return sum(len(tokens) for tokens, _ in batches)


def texts_of(loader: StepDataset, steps: int, tokenizer: Any) -> list[str]:
    ids = loader.order.samples(0, steps * BATCH)[1]
    return [tokenizer.decode(tokens.tolist(), skip_special_tokens=True) for tokens in loader.reader.tokens(ids)]


def tokenize(texts: list[str], tokenizer: Any, longest: int) -> int:
    total = 0
    for first in range(0, len(texts), BATCH):
        encoded = tokenizer(texts[first : first + BATCH], truncation=True, max_length=longest)
        total += len(packed(encoded["input_ids"])[0])
    return total


def contenders(dataset: Path, tokens: int, work: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield (name, function that delivers the sequences and returns their number of tokens)."""
    first = open_loader(dataset)
    manifest = first.reader.manifest
    mean = manifest.n_tokens / manifest.n_sequences
    steps = max(1, min(int(tokens / mean), manifest.n_sequences) // BATCH)
    tokenizer = load_tokenizer(dataset / TOKENIZER_FOLDER)
    info, starts = TokenizerInfo(**manifest.tokenizer), word_starts(tokenizer)
    masker = Masker(MaskingConfig(), info, starts, 0)
    annotator = Annotator(dataset, Config(), info, starts, inverse_marker(tokenizer))
    urls = write_plain_tars(first, steps, work / f"plain-{dataset.name}")
    texts = texts_of(first, steps, tokenizer)
    # Open each loader anew, so that no block is decoded yet.
    yield "loader", lambda: read_steps(open_loader(dataset), steps)
    yield "loader, with masks", lambda: read_steps(open_loader(dataset, masker), steps)
    yield KNOWLEDGE, lambda: read_steps(open_loader(dataset, masker, annotator=annotator), steps)
    yield "loader, one of 8 ranks", lambda: read_steps(open_loader(dataset, ranks=8), max(4, steps // 8))
    yield "loader, one of 64 ranks", lambda: read_steps(open_loader(dataset, ranks=64), max(4, steps // 64))
    yield "webdataset, a sample per member", lambda: read_plain_tars(urls)
    yield "fast tokenizer on text", lambda: tokenize(texts, tokenizer, manifest.max_length)


def measure(dataset: Path, tokens: int, repeats: int, work: Path) -> dict[str, Any]:
    """Measure each contender's tokens per second of CPU time, and the loader's ratio to the last two, per repeat."""
    running = list(contenders(dataset, tokens, work))
    rates: dict[str, list[float]] = {name: [] for name, _ in running}
    for repeat in range(repeats + 1):
        for name, call in running:
            started = time.process_time()
            delivered = call()
            if repeat:  # the first repeat warms caches
                rates[name].append(delivered / (time.process_time() - started))
    ratios = {
        f"{name} / {other}": [a / b for a, b in zip(rates[name], rates[other], strict=True)]
        for name in ("loader", "loader, with masks", KNOWLEDGE)
        for other in ("webdataset, a sample per member", "fast tokenizer on text")
    }
    cost = [a / b for a, b in zip(rates[KNOWLEDGE], rates["loader, with masks"], strict=True)]
    ratios[f"{KNOWLEDGE} / loader, with masks"] = cost
    manifest = open_loader(dataset).reader.manifest
    return {
        "sequences": manifest.n_sequences,
        "mean_tokens": manifest.n_tokens / manifest.n_sequences,
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ratios": {name: spread(values) for name, values in ratios.items()},
    }


def measure_resume(dataset: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Measure the milliseconds from opening the dataset to the first batch, at the start and at 90% of an epoch."""
    found: dict[str, list[float]] = {"position 0": [], "90% of an epoch": []}
    last = int(0.9 * open_loader(dataset).order.n_samples) // BATCH
    for repeat in range(5 * repeats + 1):
        for name, step in zip(found, (0, last), strict=True):
            started = time.perf_counter()
            item = open_loader(dataset)[step]
            assert isinstance(item, Step)
            if repeat:
                found[name].append(1000 * (time.perf_counter() - started))
    return {name: spread(values) for name, values in found.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(result: dict[str, Any]) -> str:
    """Format the tables as Markdown, with a line on the origin of the figures."""
    sets = result["datasets"]
    heads = [f"{name}: mean {about['mean_tokens']:.0f} tokens" for name, about in sets.items()]
    rows = [f"| million tokens/s per core | {' | '.join(heads)} |", "|---" * (1 + len(sets)) + "|"]
    for name in next(iter(sets.values()))["tokens_per_s"]:
        cells = [_cell(about["tokens_per_s"][name], 1e6) for about in sets.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", f"| ratio | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for name in next(iter(sets.values()))["ratios"]:
        rows.append(f"| {name} | {' | '.join(_cell(about['ratios'][name], 1) for about in sets.values())} |")
    rows += ["", f"| opening to first batch, ms | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for name in next(iter(sets.values()))["resume_ms"]:
        rows.append(f"| {name} | {' | '.join(_cell(about['resume_ms'][name], 1) for about in sets.values())} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    about = f"{result['source']}; median (least - most) of {result['repeats']} repeats; {result['device']}"
    return "\n".join([*rows, "", f"{about}; {versions}; {result['date']}."])


def _cell(values: dict[str, float], unit: float) -> str:
    median, least, most = (values[key] / unit for key in ("median", "min", "max"))
    return f"{median:.3g} ({least:.3g} - {most:.3g})"


def device() -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return f"{model.split(':')[1].strip()}, {os.cpu_count()} cores, {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="source for `trelm prepare` (default: the sample world)")
    parser.add_argument("--wikidata5m", type=Path, help="Wikidata5M folder; required with --source")
    parser.add_argument("--tokenizer", default="train", help="tokenizer folder, or 'train'")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens to read in each measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs", help="folder for benchmarks/loader.json and loader.md"
    )
    arguments = parser.parse_args()
    if (arguments.source is None) != (arguments.wikidata5m is None):
        parser.error("--source and --wikidata5m go together")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        datasets = {}
        for name, dataset in prepare_datasets(arguments, work).items():
            datasets[name] = measure(dataset, arguments.tokens, arguments.repeats, work)
            datasets[name]["resume_ms"] = measure_resume(dataset, arguments.repeats)
    result = {
        "source": "the sample world" if arguments.source is None else arguments.source.name,
        "device": device(),
        "versions": {name: version(name) for name in ("torch", "numpy", "webdataset", "tokenizers")},
        "date": datetime.date.today().isoformat(),
        "repeats": arguments.repeats,
        "settings": {"global_batch_size": BATCH, "micro_batch_tokens": BUDGET, "window_blocks": WINDOW},
        "datasets": datasets,
    }
    (arguments.out / "benchmarks").mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks" / "loader.json").write_text(json.dumps(result, indent=1) + "\n")
    page = arguments.out / "loader.md"
    if page.is_file():
        before, _, rest = page.read_text().partition(START)
        page.write_text(f"{before}{START}\n{table(result)}\n{END}{rest.partition(END)[2]}")
    print(table(result))


if __name__ == "__main__":
    main()
