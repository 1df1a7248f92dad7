"""Reports of LAMA results: a table, a plot, a JSON file with the predictions beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.evaluation.lama.evaluate import LamaResult
from trelm_ds.evaluation.lama.scoring import METRICS
from trelm_ds.evaluation.results import predictions_file, write_predictions, write_result

_TITLES = {"trex": "T-REx", "google_re": "Google-RE", "conceptnet": "ConceptNet", "squad": "SQuAD"}
_METRIC_TITLES = dict(zip(METRICS, ("P@1", "P@10", "MRR"), strict=True))


def format_lama(summary: dict[str, Any]) -> str:
    """Format every part in percent, the majority baseline beside each figure: relations, groups, means."""
    tables = [_format_part(name, part) for name, part in summary["parts"].items()]
    about = summary["candidates"]
    return "\n\n".join([*tables, f"candidates: {about['n_tokens']} tokens of {_source(about)}"])


def _source(about: dict[str, Any]) -> str:
    others = " and ".join(Path(folder).name for folder in about["common_with"])
    if about["path"]:
        return Path(about["path"]).name + (f", those shared with {others}" if others else "")
    return f"the words shared with {others}" if others else "the model's vocabulary"


def _format_part(name: str, part: dict[str, Any]) -> str:
    relations = [(id_, score["label"], score) for id_, score in part["relations"].items()]
    groups = [("group", f"{grouping}: {_group_title(group, part)}", score) for grouping, group, score in _groups(part)]
    means = [
        ("mean", f"over {part['n_relations']} relations", part),
        ("mean", "over all facts", part["micro"] | {"n_facts": part["n_facts"]}),
    ]
    first = max(len(row[0]) for row in [*relations, *groups, *means])
    second = max(len(row[1]) for row in [*relations, *groups, *means])
    figures = "".join(f" {title:>6} {'major.':>6}" for title in _METRIC_TITLES.values())
    header = f"{_TITLES[name]:<{first + second + 1}}{figures} {'facts':>7}"
    rule = "-" * len(header)
    lines = [header]
    for section in (relations, groups, means):
        lines += [rule] * bool(section)
        lines += [
            f"{left:<{first}} {right:<{second}}{_figures(score)} {score['n_facts']:>7}"
            for left, right, score in section
        ]
    skipped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in part["skipped"].items())
    return "\n".join([*lines, f"facts skipped: {skipped or 'none'}"])


def _figures(score: dict[str, Any]) -> str:
    return "".join(f" {_percent(score[key]):>6} {_percent(score['majority_baseline'][key]):>6}" for key in METRICS)


def _groups(part: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for grouping, groups in part["groups"].items():
        for group, score in groups.items():
            yield grouping, group, score


def _group_title(group: str, part: dict[str, Any]) -> str:
    """Name a group; LAMA-UHN without its second filter is not what others report under that name."""
    only_strings = group == "uhn" and part["uhn"]["filters"] == ["string_match"]
    return f"{group} (string match only)" if only_strings else group


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def plot_lama(summary: dict[str, Any], path: Path) -> None:
    """Plot P@1 and majority baseline as bars into a PNG: for each part a panel of relations and one of groups.

    Raises:
        UserError: `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(summary)
    sizes = [len(panel) + 1 for _, panel in panels]
    figure = Figure(figsize=(9, 1.5 + 0.42 * sum(sizes)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=sizes)
    for axes, (title, panel) in zip(grid[:, 0], panels, strict=True):
        places = range(len(panel))
        for offset, label, color, scores in (
            (-0.2, "P@1", "#1f5fa8", panel.values()),
            (0.2, "majority object", "#c4c4c4", [score["majority_baseline"] for score in panel.values()]),
        ):
            shares = [100 * score["p_at_1"] for score in scores]
            bars = axes.barh([place + offset for place in places], shares, height=0.38, label=label, color=color)
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
        axes.set_yticks(
            list(places), [f"{name}  n={score['n_facts']}" for name, score in panel.items()], parse_math=False
        )
        axes.set_ylim(len(panel) - 0.4, -0.6)  # the first on top, no empty margin
        axes.set_xlim(0, 105)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"LAMA P@1 of {Path(summary['model']).name}", parse_math=False)
    grid[0, 0].legend(loc="lower right", frameon=False)
    grid[-1, 0].set_xlabel("percent of facts")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None


def _panels(summary: dict[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """List (title, name -> scores) of what has a score."""
    found = []
    for name, part in summary["parts"].items():
        mean = f"mean {_percent(part['p_at_1'])} %, majority object {_percent(part['majority_baseline']['p_at_1'])} %"
        relations = {f"{one['label']} ({id_})": one for id_, one in part["relations"].items() if one["n_facts"]}
        groups = {f"{_group_title(group, part)}": one for _, group, one in _groups(part)}
        found += [(f"{_TITLES[name]}: {mean}", relations)] * bool(relations)
        found += [(f"{_TITLES[name]}: groups", groups)] * bool(groups)
    return found


def write_lama(result: LamaResult, out: Path) -> None:
    """Write the figures as JSON and, before it, the predictions beside it; both atomically.

    The result names the predictions under `predictions`. They are gzipped JSON, one record for each fact asked: part,
    relation, subject, object, texts (as asked, with [MASK]), tokens of the object, rank, n_candidates, log_prob, the
    ten best candidates in `top` with their log-probabilities, groups. Equal results give equal bytes.

    Raises:
        UserError: a file cannot be written.
    """
    predictions = predictions_file(out)
    write_predictions(result.predictions, predictions)
    write_result(result.summary | {"predictions": predictions.name}, out)
