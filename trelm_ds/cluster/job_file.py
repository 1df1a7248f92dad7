"""The sbatch file of a submission: a job script with what was asked for written into it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from trelm_ds.errors import UserError

# SBATCH_* variables with a value, and the option that each stands for where the names differ. sbatch reads them itself;
# they are written down so that the file asks for the same when somebody submits it by hand.
_VARIABLES = {"TIMELIMIT": "time", "MEM_PER_NODE": "mem"} | {
    name: name.lower().replace("_", "-")
    for name in (
        *("ACCOUNT", "CLUSTERS", "CONSTRAINT", "CPUS_PER_GPU", "GPUS", "GPUS_PER_NODE", "GRES", "HINT", "JOB_NAME"),
        *("MEM_PER_CPU", "MEM_PER_GPU", "NETWORK", "OPEN_MODE", "PARTITION", "QOS", "RESERVATION", "SIGNAL", "WCKEY"),
    )
}


def join_options(words: Sequence[str]) -> list[str]:
    """sbatch options with their values joined to them: `-p gpu` as `-pgpu`, `--time 1:00` as `--time=1:00`.

    A word that stood alone would be taken for the script by sbatch.

    Raises:
        UserError: a value without an option, or a control character.
    """
    options: list[str] = []
    for word in words:
        if re.search(r"[\x00-\x1f]", word):
            raise UserError(f"sbatch option {word!r}: holds a control character")
        if re.match(r"--arr|-a", word):
            raise UserError(f"sbatch option {word}: a run is one job; for several runs there is slurm/sweep.sh")
        if word.startswith("-") and len(word) > 1:
            options.append(word)
            continue
        before = options[-1] if options else ""
        if re.fullmatch(r"-\w", before):
            options[-1] += word
        elif re.fullmatch(r"--[\w-]+", before):
            options[-1] += f"={word}"
        else:
            raise UserError(f"'{word}' after --: belongs to no option; what stands there is for sbatch, as --time=1:00")
    return options


def from_environment(environment: Mapping[str, str]) -> list[str]:
    """The options that SBATCH_* variables stand for."""
    values = {option: environment.get(f"SBATCH_{name}") for name, option in _VARIABLES.items()}
    return [f"--{option}={value}" for option, value in values.items() if value]


def job_file(script: str, options: Sequence[str], variables: Mapping[str, str], about: Sequence[str]) -> str:
    """The script with `#SBATCH` lines added below its own, which they override, and variables set below those.

    Args:
        script: text of a batch script.
        options: each one word, its value joined to it.
        variables: to export.
        about: lines of comment.

    Raises:
        UserError: no batch script.
    """
    lines = script.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise UserError("no batch script: its first line must name the shell, such as #!/bin/bash")
    head = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    asked = [number for number in range(head) if lines[number].startswith("#SBATCH")]
    at = asked[-1] + 1 if asked else 1  # sbatch reads no #SBATCH line below the first command
    added = ["", *(f"# {line}" for line in about)]
    added += [f"#SBATCH {_quoted(option)}" for option in options]
    added += [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    return "\n".join([*lines[:at], *added, "", *lines[at:]]) + "\n"


def _quoted(option: str) -> str:
    """As sbatch reads it: it knows quotes, and takes a free # for a comment."""
    return shlex.quote(option) if re.search(r"[\s'\"\\#]", option) else option
