"""Data card of a prepared dataset: README.md with its sources, licence, funnel and two plots."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from trelm_ds.corpus.graph_stage import DERIVABLE, HELD_OUT
from trelm_ds.corpus.options import HOLD_OUT_SETTINGS
from trelm_ds.shards import CARD, HELD_OUT_FACTS, HELD_OUT_TEXT, Manifest

_LISTED = 20  # templates that are listed by name
_FREQUENCY, _LENGTHS = "frequency.png", "lengths.png"


def write_card(folder: Path, manifest: Manifest, entity_counts: np.ndarray, left_out: Counter[str]) -> None:
    """Write README.md, frequency.png and lengths.png; equal datasets get equal cards.

    Args:
        folder: the dataset's folder, which already holds lengths.npy.
        manifest: the manifest, whose `files` may still be empty.
        entity_counts: int [E], mentions of each entity.
        left_out: how often each template was left out.
    """
    lengths = np.load(folder / "lengths.npy")
    _plot_lengths(lengths, manifest.max_length, folder / _LENGTHS)
    pictures = [f"![tokens of a sequence]({_LENGTHS})"]
    if len(entity_counts):
        _plot_frequency(entity_counts, folder / _FREQUENCY)
        pictures.append(f"![mentions of an entity, by rank]({_FREQUENCY})")
    request = manifest.request
    settings = {name: value for name, value in request.items() if name not in ("sources", "license", "tokenizer")}
    settings |= {f"tokenizer: {name}": value for name, value in request["tokenizer"].items()}
    lines = [
        "# Data card",
        "",
        f"{manifest.n_sequences:,} sequences, {manifest.n_tokens:,} tokens, {manifest.n_mentions:,} entity mentions in "
        f"{len(manifest.shards)} shards. Made by `trelm prepare`; `trelm verify` checks it.",
        "",
        f"Licence of the text: **{_cell(request['license'])}**",
        "",
        "## Sources",
        "",
        *_table(("file", "sha256"), request["sources"].items()),
        "## Settings",
        "",
        *_table(("setting", "value"), settings.items()),
        "## From source to sequence",
        "",
        *_table(("what", "number"), ((name, f"{value:,}") for name, value in manifest.counts.items())),
        *_about_held_out_text(manifest),
        *_about_held_out(manifest),
        *_about_templates(left_out),
        "## Shape",
        "",
        f"A sequence has {lengths.mean():.1f} tokens on average (median {np.median(lengths):.0f}, longest "
        f"{lengths.max()}); {(lengths == manifest.max_length).mean():.1%} are as long as allowed.",
        *_about_entities(entity_counts),
        "",
        "\n\n".join(pictures),
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _about_held_out_text(manifest: Manifest) -> list[str]:
    if "held_out" not in manifest.request:
        return []
    return [
        "## Text held out",
        "",
        f"{manifest.counts['documents held out']:,} documents, {manifest.counts['sequences held out']:,} sequences, "
        f"are in `{HELD_OUT_TEXT}/` and in no shard beside it. Frequencies of entities, words and tokens, and a "
        "tokenizer that was trained here, are without them.",
        "",
    ]


def _about_held_out(manifest: Manifest) -> list[str]:
    if HOLD_OUT_SETTINGS[0] not in manifest.request:
        return []
    return [
        "## Facts held out",
        "",
        f"{manifest.counts[HELD_OUT]:,} facts are in `{HELD_OUT_FACTS}` and not in `graph/`, so that what a model says "
        "of them is not what it was trained on. The text is as it was and may state them. Of "
        f"{manifest.counts.get(DERIVABLE, 0):,} the two entities are connected by another fact of the graph, such as "
        "an inverse, from which they may be derived.",
        "",
    ]


def _about_templates(left_out: Counter[str]) -> list[str]:
    if not left_out:
        return []
    most = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
    return [
        "## Templates left out",
        "",
        f"The most frequent of {len(left_out):,}; what stands for words in a sentence is not among them.",
        "",
        *_table(("template", "times"), ((name, f"{times:,}") for name, times in most)),
    ]


def _about_entities(counts: np.ndarray) -> list[str]:
    if not len(counts):
        return []
    mean = counts.mean()
    rare = counts < mean
    return [
        f"An entity is mentioned {mean:.1f} times on average; the {rare.mean():.1%} below that (the long tail) have "
        f"{counts[rare].sum() / counts.sum():.1%} of the mentions."
    ]


def _table(heads: tuple[str, str], rows: object) -> list[str]:
    made = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]  # type: ignore[attr-defined]
    return [f"| {heads[0]} | {heads[1]} |", "|---|---|", *made, ""]


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _plot_lengths(lengths: np.ndarray, longest: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(lengths, bins=min(64, longest), range=(0, longest + 1), color="tab:blue")
    axes.set(xlabel="tokens of a sequence", ylabel="sequences", title=f"{len(lengths):,} sequences")
    figure.savefig(path, dpi=120)


def _plot_frequency(counts: np.ndarray, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(np.arange(1, len(counts) + 1), np.sort(counts)[::-1], color="tab:blue")
    axes.axhline(counts.mean(), color="tab:red", linestyle="--", label=f"mean {counts.mean():.1f}: long tail below")
    axes.set(xlabel="rank of the entity", ylabel="mentions", title=f"{len(counts):,} entities")
    axes.legend()
    figure.savefig(path, dpi=120)
