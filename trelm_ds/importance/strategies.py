"""Comparison of the strategies of Figure 3 on a dataset: what each keeps, as numbers, a table and a plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from trelm_ds.config import SelectionConfig, Strategy
from trelm_ds.errors import UserError
from trelm_ds.importance.store import (
    FOLDER,
    FREQUENCY_FILES,
    SUMMARY,
    ImportanceScores,
    load_frequencies,
    read_blocks,
)
from trelm_ds.knowledge import STRATEGIES, EntityFrequencies, MentionSelector, semantic_importance
from trelm_ds.progress import track
from trelm_ds.shards import Manifest, check_files

FILTERS = ("by frequency", "by frequency and importance")


def compare_strategies(dataset: Path, selection: SelectionConfig) -> dict[str, Any]:
    """Count what every strategy keeps, by frequency alone and, if the dataset has scores, also by importance.

    Args:
        dataset: folder made by `trelm prepare`.
        selection: checked settings for all strategies; `strategy` and `importance` are ignored.

    Returns:
        plain JSON values: totals, the long tail, the scores' scope (None without scores), and for each filter and
        strategy the mentions, entities and sequences kept (the last two: with at least one mention kept), as number and
        share; None for a strategy whose mentions were not scored.

    Raises:
        UserError: no dataset, or its scores are damaged or were made for a lower entity threshold.
    """
    manifest = Manifest.load(dataset)
    check_files(dataset, manifest, FREQUENCY_FILES)
    frequencies = load_frequencies(dataset)
    scores = ImportanceScores(dataset, manifest) if (dataset / FOLDER / SUMMARY).is_file() else None
    bar = None if scores is None else scores.bar(selection, frequencies)
    selectors: dict[tuple[str, Strategy], MentionSelector | None] = {}
    for strategy in STRATEGIES:
        mine = dataclasses.replace(selection, strategy=strategy)
        selectors[FILTERS[0], strategy] = MentionSelector(mine, frequencies, None)
        if scores is not None:
            covered = scores.scope == "all" or strategy in ("long_tail", "none")
            selectors[FILTERS[1], strategy] = MentionSelector(mine, frequencies, bar) if covered else None
    totals = {
        "mentions": manifest.n_mentions,
        "entities": len(frequencies.qids),
        "sequences": manifest.n_sequences,
    }
    kept = _count(dataset, manifest, scores, selectors, frequencies)
    rare = frequencies.long_tail(selection.entity_threshold)
    threshold = frequencies.mean if selection.entity_threshold is None else selection.entity_threshold
    filters: dict[str, Any] = {name: {} for name, _ in selectors}
    for (name, strategy), found in kept.items():
        shares = None if found is None else {what: _share(number, totals[what]) for what, number in found.items()}
        filters[name][strategy] = shares
    return {
        "totals": totals,
        "long_tail": {
            "threshold": threshold,
            "entities": _share(int(rare.sum()), len(rare)),
            "entities_with_a_triple": int(frequencies.has_triple.sum()),
        },
        "selection": {name: getattr(selection, name) for name in ("entity_threshold", "quantile", "max_per_sequence")},
        "scores": scores and {name: scores.about[name] for name in ("scope", "counts", "model")},
        "bar": bar if bar is not None and np.isfinite(bar) else None,
        "kept": filters,
    }


def _share(number: int, total: int) -> dict[str, float]:
    return {"number": number, "share": number / max(1, total)}


def _count(
    dataset: Path,
    manifest: Manifest,
    scores: ImportanceScores | None,
    selectors: dict[tuple[str, Strategy], MentionSelector | None],
    frequencies: EntityFrequencies,
) -> dict[tuple[str, Strategy], dict[str, int] | None]:
    """Count the mentions, entities and sequences that each selector keeps, in one pass over the shards."""
    numbers = {key: {"mentions": 0, "sequences": 0} for key, selector in selectors.items() if selector}
    seen = {key: np.zeros(len(frequencies.qids), dtype=bool) for key in numbers}
    block_number = 0
    for shard in track(range(len(manifest.shards)), "comparing strategies", total=len(manifest.shards)):
        for block in read_blocks(dataset, manifest, shard):
            cosines = None if scores is None else scores.block(block_number)
            block_number += 1
            for key, found in numbers.items():
                selector = selectors[key]
                assert selector is not None
                kept = block.mentions[selector(block.mentions, cosines if key[0] == FILTERS[1] else None)]
                found["mentions"] += len(kept)
                found["sequences"] += len(np.unique(kept[:, 0]))
                seen[key][np.searchsorted(frequencies.qids, kept[:, 3])] = True
    for key, entities in seen.items():
        numbers[key]["entities"] = int(entities.sum())
    return {key: numbers.get(key) for key in selectors}


def format_strategies(result: dict[str, Any]) -> str:
    """Format the result of `compare_strategies` as a table."""
    long_tail, totals, selection = result["long_tail"], result["totals"], result["selection"]
    lines = [
        f"{totals['mentions']:,} mentions of {totals['entities']:,} entities in {totals['sequences']:,} sequences; "
        f"{long_tail['entities_with_a_triple']:,} entities have a triple",
        f"long tail: fewer than {long_tail['threshold']:.4g} mentions: {long_tail['entities']['number']:,} entities "
        f"({long_tail['entities']['share']:.1%})",
    ]
    limit = f"at most {selection['max_per_sequence']} per sequence"
    for name, strategies in result["kept"].items():
        bar = f", top {selection['quantile']:.0%} by 1 - cos" if name == FILTERS[1] else ""
        lines += ["", f"kept {name}{bar}, {limit}", f"{'':<16}{'mentions':>20}{'entities':>20}{'sequences':>20}"]
        for strategy, kept in strategies.items():
            if kept is None:
                lines.append(f"{strategy:<16}  not scored: needs `trelm importance --scope all`")
                continue
            cells = (f"{kept[what]['number']:,} {kept[what]['share']:>7.1%}" for what in totals)
            lines.append(f"{strategy:<16}" + "".join(f"{cell:>20}" for cell in cells))
    if result["scores"] is None:
        lines += ["", "no importance scores: --quantile has no effect; run `trelm importance` to get them"]
    elif result["bar"] is None:
        lines += ["", "no mention of a long-tail entity has a score"]
    else:
        importance = float(semantic_importance(np.array(result["bar"])))
        lines += ["", f"important: a cosine of at most {result['bar']:.4f}, SI at least {importance:.3f}"]
    return "\n".join(lines)


def plot_strategies(result: dict[str, Any], path: Path) -> None:
    """Plot the kept shares of mentions, entities and sequences as a bar chart into a PNG, one panel per filter.

    Raises:
        UserError: `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 2.6 * len(result["kept"])), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(result["kept"]), 1, squeeze=False, sharex=True)[:, 0]
    colors = {"mentions": "#1f5fa8", "entities": "#7fb2e5", "sequences": "#c4c4c4"}
    for axes, (name, strategies) in zip(panels, result["kept"].items(), strict=True):
        shown = {strategy: kept for strategy, kept in strategies.items() if kept is not None}
        for offset, (what, color) in zip((-0.27, 0, 0.27), colors.items(), strict=True):
            places = [place + offset for place in range(len(shown))]
            shares = [100 * kept[what]["share"] for kept in shown.values()]
            axes.bar_label(axes.barh(places, shares, height=0.25, label=what, color=color), fmt="%.1f", fontsize=8)
        axes.set_yticks(range(len(shown)), [strategy.replace("_", " ") for strategy in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 112)
        axes.set_title(f"chosen {name}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="lower right", frameon=False, fontsize=8)
    panels[-1].set_xlabel("percent of the corpus")
    try:
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give another file") from None
