"""Print the table at the end of `make quickstart`: P@1 of plain MLM and of TRELM, by tier.

python tools/quickstart_report.py [--folder quickstart] [--write]

--write also writes it to docs/benchmarks/quickstart.json and README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- quickstart-table -->", "<!-- /quickstart-table -->"
RECIPES = ("mlm", "trelm")
TIERS = ("often", "once", "graph_only", "derived_inverse", "derived_two_step", "held_out")  # as they are listed


def report(folder: Path) -> dict[str, Any]:
    """Collect results, training figures and the machine."""
    recipes = {}
    for name in RECIPES:
        lama = json.loads((folder / f"{name}-lama.json").read_text())["parts"]["trex"]
        points = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        recipes[name] = {
            "steps": points[-1]["step"],
            "mlm_loss": points[-1]["mlm_loss"],
            "sequences_per_s": sorted(point["sequences_per_s"] for point in points)[len(points) // 2],
            "tiers": {tier: _figures(score) for tier, score in [*_in_order(lama["groups"]["tier"]), ("all", lama)]},
        }
    return {
        "device": f"{os.cpu_count()} cores, {_cpu()}, no GPU",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "date": datetime.date.today().isoformat(),
        "recipes": recipes,
    }


def _in_order(tiers: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(tiers.items(), key=lambda item: TIERS.index(item[0]))


def _cpu() -> str:
    """Name the processor: figures are equal digit for digit on the same kind only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _figures(score: dict[str, Any]) -> dict[str, Any]:
    majority = score["majority_baseline"]["p_at_1"]
    return {"p_at_1": score["p_at_1"], "majority_baseline": majority, "n_facts": score["n_facts"]}


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown, one row per tier, with a line on the origin of the figures."""
    header = "".join(f" {name}, P@1 (%) |" for name in RECIPES)
    rows = [f"| facts |{header} most frequent answer (%) | facts probed |", "|---" * (len(RECIPES) + 3) + "|"]
    recipes = [result["recipes"][name] for name in RECIPES]
    for tier, score in recipes[0]["tiers"].items():
        each = "".join(f" {100 * recipe['tiers'][tier]['p_at_1']:.1f} |" for recipe in recipes)
        rows.append(f"| {tier} |{each} {100 * score['majority_baseline']:.1f} | {score['n_facts']} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    steps = recipes[0]["steps"]
    rows.append(
        f"\nMean over relations; one seed, {steps} steps each; {result['device']}; {versions}; {result['date']}."
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "quickstart", help="folder of `make quickstart`")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/quickstart.json and README.md")
    options = parser.parse_args()
    try:
        result = report(options.folder)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; run `make quickstart` first", file=sys.stderr)
        raise SystemExit(2) from None
    print(table(result))
    if options.write:
        (ROOT / "docs" / "benchmarks" / "quickstart.json").write_text(json.dumps(result, indent=1) + "\n")
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text().partition(START)
        readme.write_text(f"{before}{START}\n{table(result)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
