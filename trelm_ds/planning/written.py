"""A choice written down: a DeepSpeed file, and the settings that go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from trelm_ds.files import write_atomically
from trelm_ds.planning.choices import Choice


def write_choice(choice: Choice, ds_config: dict[str, Any], file: Path, about: str) -> tuple[Path, Path]:
    """Write settings to FILE (YAML) and the DeepSpeed file beside it (FILE's name with .ds.json); return both paths.

    Args:
        ds_config: content of the DeepSpeed file.
        about: a line for the top of the settings: where they are from.
    """
    ds_file = file.with_suffix(".ds.json")
    settings = choice.settings(str(ds_file.absolute()))
    text = f"# {about}\n{yaml.safe_dump(settings, sort_keys=False)}"
    write_atomically(ds_file, (json.dumps(ds_config, indent=2) + "\n").encode())
    write_atomically(file, text.encode())
    return file, ds_file
