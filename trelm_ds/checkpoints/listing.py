"""A run's checkpoints for people: listed, checked, pruned."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import NamedTuple

from trelm_ds.checkpoints.manifest import read_verified
from trelm_ds.checkpoints.saver import prune
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.run_folder import LOCK, MANIFEST, POINTER, checkpoints_folder, committed, step_of


class Entry(NamedTuple):
    """One checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        bytes: of all its files.
        committed_at: seconds since 1970.
        ranks, zero_stage: that wrote it.
        problem: what is wrong with it; None where nothing is known to be.
    """

    path: Path
    step: int
    bytes: int
    committed_at: float
    ranks: int
    zero_stage: int
    problem: str | None


def catalogue(run: Path, verify: bool) -> list[Entry]:
    """The committed checkpoints of a run, the one that a start would continue first, then newest first.

    Args:
        run: the run folder.
        verify: whether every file's size and hash are checked.

    Raises:
        UserError: no run folder.
    """
    if not checkpoints_folder(run).is_dir():
        raise UserError(f"{run}: no run folder, it has no {checkpoints_folder(run).name}")
    return [entry for path in committed(run) if (entry := _entry(path, verify))]


def _entry(path: Path, verify: bool) -> Entry | None:
    """None where the run that is going on removes it just now."""
    ranks, stage, problem = 0, 0, None
    try:
        about = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        ranks, stage = int(about["world_size"]), int(about["zero_stage"])
    except (OSError, ValueError, TypeError, KeyError):
        problem = f"{path / MANIFEST}: damaged"
    if verify:
        try:
            read_verified(path)
        except UserError as error:
            problem = str(error)
    try:
        committed_at = (path / MANIFEST).stat().st_mtime
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError:
        return None
    return Entry(path, step_of(path), size, committed_at, ranks, stage, problem)


def to_table(entries: list[Entry], run: Path, verified: bool) -> str:
    """A line for each, with what a start would take marked, and what is known to be wrong."""
    try:
        pointed = json.loads((checkpoints_folder(run) / POINTER).read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, TypeError, KeyError):
        pointed = None
    lines = [f"  {'step':>10}  {'MB':>10}  committed            ranks  ZeRO  state"]
    for entry in entries:
        when = datetime.datetime.fromtimestamp(entry.committed_at).isoformat(" ", "seconds")
        state = entry.problem or ("sound" if verified else "not checked; --verify does")
        mark = "*" if entry.path.name == pointed else " "
        about = f"{entry.ranks:>5}  {entry.zero_stage:>4}"
        lines.append(f"{mark} {entry.step:>10,}  {entry.bytes / 1e6:>10,.1f}  {when}  {about}  {state}")
    lines.append("* the next start continues from here, or from the next one below that is sound")
    return "\n".join(lines)


def prune_run(run: Path, keep: int) -> list[Path]:
    """Removes all but the newest sound checkpoints; returns those removed, damaged ones among them.

    Raises:
        UserError: fewer than 2 would stay, none is sound, or the run is going on.
    """
    if keep < 2:
        raise UserError(f"--prune: at least 2 must stay, so that a damaged one never costs the run, got {keep}")
    catalogue(run, verify=False)
    with lock(run / LOCK, f"{run}"):
        found = catalogue(run, verify=True)
        damaged = {entry.path for entry in found if entry.problem}
        if found and len(damaged) == len(found):
            raise UserError(f"--prune: {found[0].problem}, and no other is sound; nothing was removed")
        return prune(run, keep, None, damaged)
