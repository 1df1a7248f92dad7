"""A choice written down: a DeepSpeed file, the settings that go with it, and the command that uses them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
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


def command_to_use(given: list[str], data: str, settings: Path, ranks: int, nodes: int = 1) -> str:
    """Return the shell command that trains with the settings of a choice; on several nodes, the one that submits a job.

    Args:
        given: files and settings of the command line, of which those that the choice decides are left out: an option
            would win over the file.
        settings: file with the choice.
        ranks: processes of a node.
    """
    kept = without(given, _decided(settings))
    if nodes > 1:
        return _job(kept, data, settings, ranks, nodes)
    torchrun = f"torchrun --standalone --nproc-per-node {ranks} -m trelm_ds" if ranks > 1 else "trelm"
    return f"{torchrun} {shlex.join(['pretrain', *kept, '--config', str(settings), '--data', data])} --out RUN"


def _job(given: list[str], data: str, settings: Path, ranks: int, nodes: int) -> str:
    """Return the command that submits a job. Its files of settings are in a variable, separated by blanks."""
    files = [*_values(given, "--config"), str(settings)]
    variables = {"TRELM_DATA": data, "TRELM_CONFIG": " ".join(files)}
    told = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    submit = ["sbatch", "-N", str(nodes), f"--gres=gpu:{ranks}", "slurm/pretrain_large.sh"]
    return f"{told} TRELM_OUT=RUN {shlex.join([*submit, *without(given, {'--config'})])}"


def _decided(settings: Path) -> set[str]:
    sections = yaml.safe_load(settings.read_text(encoding="utf-8"))
    return {f"--{section}.{name}" for section, values in sections.items() for name in values}


def without(given: list[str], names: set[str], switches: Collection[str] = ()) -> list[str]:
    """Leave out options of the command line with their values, given as one argument or as two.

    Args:
        switches: options without a value to leave out.
    """
    kept, rest = list[str](), iter(given)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name in switches:
            continue
        if name not in names:
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return kept


def _values(given: list[str], option: str) -> list[str]:
    """Return the values of an option that may be given several times, in their order."""
    found, rest = list[str](), iter(given)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == option:
            found.append(value if equals else next(rest, ""))
    return found
