"""The site file slurm/site.env, read as the job scripts read it and checked before a job is submitted."""

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
_ENVIRONMENT_WINS = ("TRELM_", "SBATCH_")  # for these prefixes the environment wins over the file
# A password or token that stands there itself, not $(cat FILE) or $NAME.
_SECRET_VALUE = re.compile(
    r"""^[^#\n]*\b(\w+_)?(PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY)(_\w+)?=["']?[^\s"'$]""", re.M | re.I
)
_SET_BY_BASH = ("_", "SHLVL", "PWD", "OLDPWD")
_WHOLE_NUMBERS = ("TRELM_CHECK_GPUS", "TRELM_MAX_RESTARTS", "TRELM_MAX_STALLS")
_NUMBERS = ("TRELM_MIN_DISK_GB", "TRELM_MIN_BUS_GBPS", "TRELM_MAX_CLOCK_SKEW_S")
_SWITCHES = ("TRELM_HEALTH", "TRELM_REQUEUE")


def site_file(root: Path, environment: Mapping[str, str]) -> Path | None:
    """Find the site file: TRELM_SITE, else the repository's slurm/site.env; None if there is neither.

    Raises:
        UserError: TRELM_SITE does not name a file.
    """
    if named := environment.get(SITE):
        path = Path(os.path.abspath(named))
        if not path.is_file():
            raise UserError(f"{SITE}: no site file at {named}; correct or unset it")
        return path
    path = root / SITE_FILE
    return path if path.is_file() else None


def read_site(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Complete an environment with the site file's values and check them.

    Paths to the virtual environment and the container become absolute. The file is evaluated by bash. It may
    use variables that exist only inside a job (`SLURM_GPUS_ON_NODE`), so the job reads it again instead of taking all
    values from here.

    Args:
        root: repository, where relative paths in the file start.
        environment: its TRELM_* and SBATCH_* win over the file's.

    Raises:
        UserError: the file fails, a value is invalid, or there is no Python where the job would look for it.
    """
    complete = dict(environment)
    if (path := site_file(root, environment)) is not None:
        text = path.read_text(encoding="utf-8", errors="replace")
        if without_password(text) != text or _SECRET_VALUE.search(text):
            raise UserError(f"{path}: holds a password, which would be copied into snapshots; export it in your shell")
        script = 'bash -n "$1" && set -a && { source "$1" >&2; env -0; }'  # as lib.sh does
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(path)], cwd=root, env=complete, capture_output=True, text=True
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"{path}: cannot be read: {said[-1]}")
        read = dict(item.split("=", 1) for item in done.stdout.split("\0") if "=" in item)
        ours = {
            name: value
            for name, value in environment.items()
            if name.startswith(_ENVIRONMENT_WINS) or name in _SET_BY_BASH
        }
        complete = {name: value for name, value in read.items() if name not in _SET_BY_BASH} | ours
    _check_values(complete)
    if container := complete.get("TRELM_CONTAINER"):
        path = root / container
        return complete | ({"TRELM_CONTAINER": os.path.abspath(path)} if path.exists() else {})
    # By default jobs use the virtual environment that submits them.
    venv = root / (complete.get("TRELM_VENV") or sys.prefix)
    if not os.access(venv / "bin" / "python", os.X_OK):
        raise UserError(f"TRELM_VENV: no virtual environment at {venv}, bin/python is missing; create it or correct it")
    return complete | {"TRELM_VENV": os.path.abspath(venv)}


def _check_values(environment: Mapping[str, str]) -> None:
    """Make the checks of slurm/lib.sh here too, so that a mistake shows before the job waits in the queue."""
    expected = dict.fromkeys(_WHOLE_NUMBERS, ("[0-9]+", "a whole number"))
    expected |= dict.fromkeys(_NUMBERS, (r"[0-9]+(\.[0-9]+)?", "a number"))
    expected |= dict.fromkeys(_SWITCHES, ("[01]", "0 or 1"))
    expected["TRELM_PROCS_PER_NODE"] = ("[1-9][0-9]*", "a positive number")
    expected["TRELM_CONTAINER_RUNTIME"] = ("pyxis|apptainer", "pyxis or apptainer")
    for name, (pattern, words) in expected.items():
        if (value := environment.get(name)) and not re.fullmatch(pattern, value):
            raise UserError(f"{name}: must be {words}, got '{value}'")
