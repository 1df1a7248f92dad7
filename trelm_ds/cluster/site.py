"""What a site needs said once: slurm/site.env, read as the job scripts read it, and checked before anything waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from trelm_ds.errors import UserError
from trelm_ds.redact import without_password

SITE = "TRELM_SITE"
SITE_FILE = "slurm/site.env"
_FIRST = ("TRELM_", "SBATCH_")  # for these the environment wins over the file
_OF_BASH = ("_", "SHLVL", "PWD", "OLDPWD")
_WHOLE_NUMBERS = ("TRELM_CHECK_GPUS", "TRELM_MAX_RESTARTS", "TRELM_MAX_STALLS")
_NUMBERS = ("TRELM_MIN_DISK_GB", "TRELM_MIN_BUS_GBPS", "TRELM_MAX_CLOCK_SKEW_S")
_SWITCHES = ("TRELM_HEALTH", "TRELM_REQUEUE")


def site_file(root: Path, environment: Mapping[str, str]) -> Path | None:
    """The file that holds the site's values: TRELM_SITE, else slurm/site.env of the repository, if there is one.

    Raises:
        UserError: TRELM_SITE names no file.
    """
    if named := environment.get(SITE):
        path = Path(os.path.abspath(named))
        if not path.is_file():
            raise UserError(f"{SITE}: no site file at {named}; correct or unset it")
        return path
    path = root / SITE_FILE
    return path if path.is_file() else None


def read_site(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment completed by the site file, which bash reads; checked; paths to Python or container absolute.

    The file may look at variables that only a job has (`SLURM_GPUS_ON_NODE`), so what it says of a job is read once
    more there, not taken from here.

    Args:
        root: of the repository, where relative paths in the file start.
        environment: its TRELM_* and SBATCH_* win over the file's.

    Raises:
        UserError: the file fails, a value cannot be, or there is no Python where the job would look for it.
    """
    complete = dict(environment)
    if (path := site_file(root, environment)) is not None:
        if without_password(text := path.read_text(encoding="utf-8", errors="replace")) != text:
            raise UserError(f"{path}: holds a password, which would be copied into snapshots; export it in your shell")
        script = 'bash -n "$1" && set -a && { source "$1" >&2; env -0; }'  # as lib.sh does
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(path)], cwd=root, env=complete, capture_output=True, text=True
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"{path}: cannot be read: {said[-1]}")
        read = dict(item.split("=", 1) for item in done.stdout.split("\0") if "=" in item)
        ours = {name: value for name, value in environment.items() if name.startswith(_FIRST) or name in _OF_BASH}
        complete = {name: value for name, value in read.items() if name not in _OF_BASH} | ours
    _check_values(complete)
    if container := complete.get("TRELM_CONTAINER"):
        path = root / container
        return complete | ({"TRELM_CONTAINER": os.path.abspath(path)} if path.exists() else {})
    # Jobs run with the environment that submits them unless the site says another.
    venv = root / (complete.get("TRELM_VENV") or sys.prefix)
    if not os.access(venv / "bin" / "python", os.X_OK):
        raise UserError(f"TRELM_VENV: no virtual environment at {venv}, bin/python is missing; create it or correct it")
    return complete | {"TRELM_VENV": os.path.abspath(venv)}


def _check_values(environment: Mapping[str, str]) -> None:
    """As slurm/lib.sh does, but before the job has waited for its nodes."""
    expected = dict.fromkeys(_WHOLE_NUMBERS, ("[0-9]+", "a whole number"))
    expected |= dict.fromkeys(_NUMBERS, (r"[0-9]+(\.[0-9]+)?", "a number"))
    expected |= dict.fromkeys(_SWITCHES, ("[01]", "0 or 1"))
    expected["TRELM_PROCS_PER_NODE"] = ("[1-9][0-9]*", "a positive number")
    expected["TRELM_CONTAINER_RUNTIME"] = ("pyxis|apptainer", "pyxis or apptainer")
    for name, (pattern, words) in expected.items():
        if (value := environment.get(name)) and not re.fullmatch(pattern, value):
            raise UserError(f"{name}: must be {words}, got '{value}'")
