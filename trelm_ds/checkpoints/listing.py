"""`trelm checkpoints`: list, verify and prune the checkpoints of a run."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import NamedTuple

from trelm_ds.checkpoints.manifest import read_verified
from trelm_ds.checkpoints.saver import prune
from trelm_ds.errors import UnreadableError, UserError
from trelm_ds.files import lock
from trelm_ds.run_folder import LOCK, MANIFEST, checkpoints_folder, committed, latest_checkpoint, step_of


class ListedCheckpoint(NamedTuple):
    """A checkpoint as listed for users.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        bytes: size of all its files.
        committed_at: seconds since 1970.
        ranks, tensor_parallel, zero_stage: number of ranks that wrote it, how many of them shared a model, and the ZeRO
            stage; 0 where the manifest is damaged.
        problem: what is wrong with it; None where nothing is known to be.
    """

    path: Path
    step: int
    bytes: int
    committed_at: float
    ranks: int
    tensor_parallel: int
    zero_stage: int
    problem: str | None


def list_checkpoints(run: Path, verify: bool) -> list[ListedCheckpoint]:
    """List the committed checkpoints of a run: the one that a start would continue from first, then newest first.

    Args:
        run: the run folder.
        verify: check the size and hash of every file.

    Raises:
        UserError: not a run folder.
    """
    if not checkpoints_folder(run).is_dir():
        raise UserError(f"{run}: no run folder, it has no {checkpoints_folder(run).name}")
    return [checkpoint for path in committed(run) if (checkpoint := _describe(path, verify))]


def _describe(path: Path, verify: bool) -> ListedCheckpoint | None:
    """Describe one checkpoint; None where a run in progress removes it meanwhile."""
    ranks, degree, stage, problem = 0, 0, 0, None
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        ranks, stage = int(manifest["world_size"]), int(manifest["zero_stage"])
        degree = int(manifest.get("tensor_parallel", 1))  # an older one does not say it
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        problem = f"{path / MANIFEST}: damaged"
    if verify:
        try:
            read_verified(path)
        except UserError as error:
            if isinstance(error, UnreadableError) and not error.lost:
                raise  # no damage, for which `--prune` would remove it
            problem = str(error)
    try:
        committed_at = (path / MANIFEST).stat().st_mtime
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except FileNotFoundError:
        return None
    return ListedCheckpoint(path, step_of(path), size, committed_at, ranks, degree, stage, problem)


def to_table(checkpoints: list[ListedCheckpoint], run: Path, verified: bool) -> str:
    """Format one line per checkpoint, marking with * the one that a start would continue from."""
    latest = latest_checkpoint(run)
    lines = [f"  {'step':>10}  {'MB':>10}  committed            ranks  per model  ZeRO  state"]
    for one in checkpoints:
        when = datetime.datetime.fromtimestamp(one.committed_at).isoformat(" ", "seconds")
        state = one.problem or ("sound" if verified else "not checked; --verify does")
        mark = "*" if one.path == latest else " "
        layout = f"{one.ranks:>5}  {one.tensor_parallel:>9}  {one.zero_stage:>4}"
        lines.append(f"{mark} {one.step:>10,}  {one.bytes / 1e6:>10,.1f}  {when}  {layout}  {state}")
    lines.append("* the next start continues from here, or from the next one below that is sound")
    return "\n".join(lines)


def prune_run(run: Path, keep: int) -> list[Path]:
    """Remove damaged checkpoints and all but the newest sound ones; return the paths removed.

    Raises:
        UserError: `keep` is less than 2, no checkpoint is sound, or the run is in progress.
    """
    if keep < 2:
        raise UserError(f"--prune: at least 2 must stay, so that a damaged one never costs the run, got {keep}")
    list_checkpoints(run, verify=False)  # checks that this is a run folder, before locking it makes a file there
    with lock(run / LOCK, f"{run}"):
        found = list_checkpoints(run, verify=True)
        damaged = {one.path for one in found if one.problem}
        if found and len(damaged) == len(found):
            raise UserError(f"--prune: {found[0].problem}, and no other is sound; nothing was removed")
        return prune(run, keep, None, damaged)
