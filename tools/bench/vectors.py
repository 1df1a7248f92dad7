"""Train vectors of prepared datasets with some triples held out, and write JSON and a table.

python tools/bench/vectors.py --data "sample world=DATASET" "T-REx graph=DATASET" --work WORK [--methods transe]

Everything runs through `trelm vectors train`, with its defaults but for what follows `--`. It may be stopped at any
time: finished trainings are kept, others go on. Triples per second are counted in CPU time of the training process, so
they are those of a core of its own also where other work shares it; set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "knowledge.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DATASET", help="datasets of `trelm prepare`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the vectors, kept between runs")
    parser.add_argument("--methods", nargs="+", default=["transe"], metavar="METHOD")
    parser.add_argument("--valid-share", default="0.01")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "vectors.json")
    parser.add_argument("options", nargs="*", help="further options of `trelm vectors train`, after --")
    return parser.parse_args()


def trained(name: str, dataset: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one method on one dataset, or take it as it is; return what the metrics file says."""
    stem = f"{name.replace(' ', '_')}-{method}"
    out, metrics = options.work / f"{stem}.safetensors", options.work / f"{stem}.json"
    if not (out.exists() and metrics.exists()):
        command = ["vectors", "train", dataset, "--out", str(out), "--metrics", str(metrics), "--method", method]
        command += ["--valid-share", options.valid_share, *options.options]
        subprocess.run([sys.executable, "-m", "trelm_ds", *command], check=True)
    found: dict[str, Any] = json.loads(metrics.read_text())
    return {"dataset": name, "method": method} | found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| graph | method | entities | training triples | epochs | MRR | Hits@1 | Hits@10 | MRR of tails, heads "
        "| triples/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts, valid = row["result"]["counts"], row["result"]["metrics"]["valid"]
        both = f"{100 * valid['tails']['mrr']:.1f}, {100 * valid['heads']['mrr']:.1f}"
        percents = " | ".join(f"{100 * valid[key]:.1f}" for key in ("mrr", "hits@1", "hits@10"))
        lines.append(
            f"| {row['dataset']} | {row['method']} | {counts['entities']:,} | {counts['training triples']:,} "
            f"| {row['settings']['epochs']:g} | {percents} | {both} | {row.get('triples_per_cpu_second', 0):,} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    data = [pair.split("=", 1) for pair in options.data]
    rows = [trained(name, dataset, method, options) for name, dataset in data for method in options.methods]
    about = {
        "date": datetime.date.today().isoformat(),
        "cpu": platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "versions": {package: version(package) for package in ("torch", "numpy")},
    }
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    if options.out.parent == PAGE.parent / "benchmarks":
        origin = (
            f"Filtered ranks of held-out triples, {options.valid_share} of the graph, both directions; one core, torch "
            f"{about['versions']['torch']}; {about['date']}. From `docs/benchmarks/{options.out.name}`, made by "
            "`tools/bench/vectors.py`."
        )
        before, start, rest = PAGE.read_text().partition("<!-- vectors-table -->\n")
        _, end, after = rest.partition("<!-- /vectors-table -->")
        PAGE.write_text(f"{before}{start}{table(rows)}\n\n{origin}\n{end}{after}")


if __name__ == "__main__":
    main()
