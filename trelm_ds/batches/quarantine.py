"""Damaged blocks that a run has passed over, written down in its folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from trelm_ds import log
from trelm_ds.files import append_line
from trelm_ds.shards import Damage

QUARANTINE = "quarantine.jsonl"  # in the run folder


def note_quarantine(run: Path, step: int, damages: list[Damage]) -> None:
    """Add damaged blocks to `quarantine.jsonl`, one JSON object for each: shard, offset, sequences, reason, step."""
    path = run / QUARANTINE
    known = set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that a kill cut short
            entry = json.loads(line)
            known.add((entry["shard"], entry["offset"]))
    for damage in damages:
        if (damage.shard, damage.offset) not in known:
            log.warning_once(f"{damage.shard}: damaged block at byte {damage.offset} ({damage.reason})")
            entry = {name: value for name, value in damage._asdict().items() if name != "block"}
            try:
                append_line(path, json.dumps(entry | {"step": step}))
            except OSError as error:  # a full disk is no reason to stop training
                log.warning_once(f"{path}: cannot be written: {error.strerror}")
