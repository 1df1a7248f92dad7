"""Turns what `make quickstart` left behind into docs/benchmarks/quickstart.json and the table of README.md.

python tools/quickstart_report.py [--folder quickstart]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- quickstart-table -->", "<!-- /quickstart-table -->"


def report(folder: Path) -> dict:
    """What was probed and trained, and where."""
    lama = json.loads((folder / "lama.json").read_text())
    points = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "date": datetime.date.today().isoformat(),
        "steps": points[-1]["step"],
        "loss": points[-1]["loss"],
        "tokens_per_s": sorted(point["tokens_per_s"] for point in points)[len(points) // 2],
        "p_at_1": lama["p_at_1"],
        "majority_baseline": lama["majority_baseline"],
        "tiers": lama["tiers"],
    }


def table(result: dict) -> str:
    """The Markdown table by tier with a line that says where the figures come from."""
    rows = ["| facts | P@1 (%) | most frequent answer (%) | facts probed |", "|---|---|---|---|"]
    for tier, score in [*result["tiers"].items(), ("all", result)]:
        facts = score.get("n_facts", sum(tier["n_facts"] for tier in result["tiers"].values()))
        rows.append(f"| {tier} | {100 * score['p_at_1']:.1f} | {100 * score['majority_baseline']:.1f} | {facts} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rows.append(
        f"\nMean over relations; one seed, {result['steps']} steps; {result['device']}; {versions}; {result['date']}."
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "quickstart", help="what make quickstart wrote")
    result = report(parser.parse_args().folder)
    target = ROOT / "docs" / "benchmarks" / "quickstart.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(f"{before}{START}\n{table(result)}\n{END}{rest.partition(END)[2]}")
    print(table(result))


if __name__ == "__main__":
    main()
