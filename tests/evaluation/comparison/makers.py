"""Result files in the formats of `trelm evaluate`, made of labels that a test chooses."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trelm_ds.evaluation.results import predictions_file, spread, spreads, write_predictions, write_result
from trelm_ds.evaluation.tasks.entity_typing import score_typing
from trelm_ds.evaluation.tasks.glue import TASKS
from trelm_ds.evaluation.tasks.relation_extraction import score_relation

Runs = Sequence[Sequence[Any]]
TYPES, RELATIONS = ("person", "place", "shop"), ("no_relation", "born_in", "works_for", "founder")


def guesses(gold: Sequence[Any], share: float, seeds: int, salt: object = "") -> list[list[Any]]:
    """Predictions of which about `share` are right; the others are taken from other examples."""
    found = []
    for seed in range(seeds):
        draw = random.Random(f"{salt} {seed}")
        found.append([true if draw.random() < share else draw.choice(gold) for true in gold])
    return found


def typed(n: int = 60) -> list[frozenset[str]]:
    draw = random.Random(1)
    return [frozenset(draw.sample(TYPES, draw.randint(0, 2))) for _ in range(n)]


def related(n: int = 60) -> list[str]:
    draw = random.Random(2)
    return [draw.choice(RELATIONS) for _ in range(n)]


def classified(n: int = 60, labels: str = "01") -> list[str]:
    draw = random.Random(3)
    return [draw.choice(labels) for _ in range(n)]


def plain(target: Any) -> Any:
    return sorted(target) if isinstance(target, frozenset) else target


def task_content(
    task: str, splits: dict[str, tuple[Sequence[Any], Runs]], negative: str | None = "no_relation"
) -> dict:
    """What a result says of one task, and the lines of its predictions."""
    score: Any = {"typing": score_typing, "relation": partial(score_relation, negative=negative)}.get(task)
    score = score or TASKS[task].score
    figures = {name: spreads([score(gold, run) for run in runs]) for name, (gold, runs) in splits.items()}
    reported = "test" if "test" in splits else "dev"
    content = {
        "metric": {"typing": "micro_f1", "relation": "micro_f1"}.get(task) or next(iter(figures[reported])),
        "reported": reported,
        "scores": figures[reported],
        "splits": figures,
        "baseline": {name: score(gold, usual(gold)) for name, (gold, _) in splits.items()},
        "labels": list(RELATIONS) if task == "relation" else ["0", "1"],
        "scoring": {"no_relation": negative} if task == "relation" else {},
        "examples": {"train": 100} | {name: len(gold) for name, (gold, _) in splits.items()},
    }
    lines = [
        {"task": task, "split": name, "index": at, "gold": plain(true), "predicted": [plain(run[at]) for run in runs]}
        for name, (gold, runs) in splits.items()
        for at, true in enumerate(gold)
    ]
    return {"content": content, "lines": lines}


def usual(gold: Sequence[Any]) -> list[Any]:
    best = gold[0] if isinstance(gold[0], frozenset | float) else Counter(sorted(gold)).most_common(1)[0][0]
    return [best] * len(gold)


def write_finetuned(
    path: Path, task: str, gold: Sequence[Any], runs: Runs, model: str = "models/a", **more: Any
) -> Path:
    """A result of typing or relation, on test."""
    made = task_content(task, {"test": (gold, runs)}, **more)
    about = {"task": task, "model": model, "data": "d", "seeds": [*range(1, len(runs) + 1)]}
    return _write(path, about | made["content"], made["lines"])


def write_glue(path: Path, tasks: dict[str, dict[str, tuple[Sequence[Any], Runs]]], model: str = "models/a") -> Path:
    """A result of some of GLUE's tasks: splits by task, each with labels and predictions."""
    made = {name: task_content(name, splits) for name, splits in tasks.items()}
    contents = {name: of["content"] for name, of in made.items()}
    content = {
        "task": "glue",
        "model": model,
        "data": "d",
        "average": spread([0.0]) | {"numbers": 1},
        "tasks": contents,
    }
    return _write(path, content, [line for of in made.values() for line in of["lines"]])


def write_lama(path: Path, ranks: dict[str, list[int]], model: str = "models/a", tokens: int = 50) -> Path:
    """A result of LAMA's part trex: ranks of the true answers by relation; every second fact is of the group uhn."""
    uhn = {name: of[::2] for name, of in ranks.items()}
    part = _macro(ranks) | {
        "micro": _figures([rank for of in ranks.values() for rank in of]),
        "skipped": {},
        "relations": {},
        "groups": {"name": {"uhn": _macro(uhn)}},
        "uhn": {"source": "computed", "filters": ["string_match"], "removed": {}},
    }
    about = {"source": "model vocabulary", "path": None, "common_with": [], "n_tokens": tokens}
    content = {"task": "lama", "model": model, "data": "d", "options": {}, "candidates": about, "parts": {"trex": part}}
    lines = [
        {
            **{
                "part": "trex",
                "relation": name,
                "subject": f"s{at}",
                "object": f"o{at}",
                "texts": [f"s{at} in [MASK]"],
            },
            **{"tokens": 1, "rank": rank, "groups": {"name": "helpful" if at % 2 else "uhn"}},
        }
        for name, of in ranks.items()
        for at, rank in enumerate(of)
    ]
    return _write(path, content, lines)


def _figures(ranks: Sequence[int]) -> dict[str, Any]:
    n = len(ranks)
    found = {"p_at_1": sum(r <= 1 for r in ranks) / n, "p_at_10": sum(r <= 10 for r in ranks) / n}
    return found | {
        "mrr": sum(1 / r for r in ranks) / n,
        "majority_baseline": {"p_at_1": 0.1, "p_at_10": 0.5, "mrr": 0.2},
    }


def _macro(ranks: dict[str, list[int]]) -> dict[str, Any]:
    each = [_figures(of) for of in ranks.values()]
    means = {name: sum(one[name] for one in each) / len(each) for name in ("p_at_1", "p_at_10", "mrr")}
    counts = {"n_facts": sum(map(len, ranks.values())), "n_relations": len(ranks)}
    return means | {"majority_baseline": each[0]["majority_baseline"]} | counts


def _write(path: Path, content: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(lines, predictions_file(path))
    write_result(content | {"predictions": predictions_file(path).name}, path)
    return path


def change(path: Path, **changes: Any) -> Path:
    """Exchange keys of a result file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path
