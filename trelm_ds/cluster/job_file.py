"""The sbatch file of a submission: a job script with the requested options and variables written into it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from trelm_ds.errors import UserError

# SBATCH_* variables that take a value, and their options. sbatch reads them itself; writing them into the file
# makes it request the same when somebody submits it by hand.
_VARIABLES = {"TIMELIMIT": "time", "MEM_PER_NODE": "mem"} | {
    name: name.lower().replace("_", "-")
    for name in (
        *("ACCOUNT", "CLUSTERS", "CONSTRAINT", "CPUS_PER_GPU", "GPUS", "GPUS_PER_NODE", "GRES", "HINT", "JOB_NAME"),
        *("MEM_PER_CPU", "MEM_PER_GPU", "NETWORK", "OPEN_MODE", "PARTITION", "QOS", "RESERVATION", "SIGNAL", "WCKEY"),
    )
}


# Options of which Slurm takes one only: another of the group has to replace it. Resources other than GPUs may be
# asked for beside them.
_EXCLUSIVE = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"},
)
_OPTION = re.compile(r"(?:--([\w-]+)|-(G))[\s=]*(.*)")


def join_options(words: Sequence[str]) -> list[str]:
    """Join sbatch options with their values: `-p gpu` becomes `-pgpu`, `--time 1:00` becomes `--time=1:00`.

    sbatch would take a word on its own for the script.

    Raises:
        UserError: a value without an option, a job array, or a control character.
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
            raise UserError(f"'{word}' after --: not an option; give sbatch options there, such as --time=1:00")
    return options


def options_from_environment(environment: Mapping[str, str]) -> list[str]:
    """Translate SBATCH_* variables into sbatch options."""
    return list(variables_of_options(environment).values())


def variables_of_options(environment: Mapping[str, str]) -> dict[str, str]:
    """Map the SBATCH_* variables that are set to their options."""
    values = {f"SBATCH_{name}": option for name, option in _VARIABLES.items()}
    return {name: f"--{option}={environment[name]}" for name, option in values.items() if environment.get(name)}


def not_replaced(options: Sequence[str], winners: Sequence[str]) -> list[str]:
    """Leave out the options in whose place `winners` have another of the kind, such as --mem-per-cpu for --mem."""
    won = [found for found in map(_exclusive, winners) if found]
    return [
        option
        for option in options
        if not ((own := _exclusive(option)) and any(own[0] == group and own[1] != name for group, name in won))
    ]


def _exclusive(option: str) -> tuple[int, str] | None:
    """Return the number of an option's group, and its name; None for an option that excludes no other."""
    match = _OPTION.match(option)
    if match is None:
        return None
    name, value = "gpus" if match[2] else match[1], match[3].strip("'\"")
    if name == "gres" and not value.startswith(("gpu", "none", "0")):
        return None
    return next(((number, name) for number, group in enumerate(_EXCLUSIVE) if name in group), None)


def job_file(script: str, options: Sequence[str], variables: Mapping[str, str], about: Sequence[str]) -> str:
    """Insert `#SBATCH` lines and exported variables into a script, below its own `#SBATCH` lines, which they override.

    Args:
        script: text of a batch script.
        options: sbatch options, one word each.
        variables: variables to export.
        about: comment lines to put above the options.

    Raises:
        UserError: the text is not a batch script.
    """
    lines = script.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise UserError("no batch script: its first line must name the shell, such as #!/bin/bash")
    head = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    asked = [number for number in range(head) if lines[number].startswith("#SBATCH")]
    at = asked[-1] + 1 if asked else 1  # sbatch ignores #SBATCH lines below the first command
    for number in asked:
        if not not_replaced([lines[number].removeprefix("#SBATCH").strip()], options):
            lines[number] = f"# replaced below: {lines[number].removeprefix('#')}"
    added = ["", *(f"# {line}" for line in about)]
    added += [f"#SBATCH {_quoted(option)}" for option in options]
    added += [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    return "\n".join([*lines[:at], *added, "", *lines[at:]]) + "\n"


def _quoted(option: str) -> str:
    """Quote an option for an #SBATCH line: sbatch understands quotes, and reads an unquoted # as a comment."""
    return shlex.quote(option) if re.search(r"[\s'\"\\#]", option) else option
