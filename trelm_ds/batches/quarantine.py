"""Damaged blocks that a run has passed over, written down in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from trelm_ds import log
from trelm_ds.files import append_line, read_json_lines
from trelm_ds.shards import Damage

QUARANTINE = "quarantine.jsonl"  # in the run folder


def note_quarantine(run: Path, step: int, damages: list[Damage]) -> None:
    """Add damaged blocks to `quarantine.jsonl`, one JSON object for each: shard, offset, sequences, reason, step."""
    path = run / QUARANTINE
    known = {(entry.get("shard"), entry.get("offset")) for entry in read_json_lines(path)}
    for damage in damages:
        if (damage.shard, damage.offset) not in known:
            log.warning_once(f"{damage.shard}: damaged block at byte {damage.offset} ({damage.reason})")
            entry = {name: value for name, value in damage._asdict().items() if name != "block"}
            try:
                append_line(path, json.dumps(entry | {"step": step}))
            except OSError as error:  # a full disk is no reason to stop training
                log.warning_once(f"{path}: cannot be written: {error.strerror}")
