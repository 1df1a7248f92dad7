"""How many processes a job will have on each node, as far as that can be told before Slurm starts it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from trelm_ds.cluster.site import read_site
from trelm_ds.cluster.slurm import outside_jobs
from trelm_ds.errors import UserError

_VARIABLE = "TRELM_PROCS_PER_NODE"
_OPTION = re.compile(r"(?<!\S)(?:--(nodes|gres|gpus|gpus-per-node|gpus-per-task)(?:=|\s+)|-([NG])[\s=]*)([^\s'\"]+)")
_LONG = {"N": "nodes", "G": "gpus"}


def check_tensor_parallel(degree: int, job: str, root: Path, environment: Mapping[str, str]) -> None:
    """Check that `model.tensor_parallel` divides the processes of a node, where their number can be told.

    Args:
        degree: t of the settings.
        job: text of the sbatch file.
        root: repository, whose site file may set the number.
        environment: of this process.

    Raises:
        UserError: it does not divide them.
    """
    number = processes_per_node(job, root, environment)
    if number is not None and number % degree:
        raise UserError(
            f"model.tensor_parallel: {degree} does not divide the {number} processes of a node ({_VARIABLE}, else its "
            "GPUs), and the ranks that share a model must be on one"
        )


def processes_per_node(job: str, root: Path, environment: Mapping[str, str]) -> int | None:
    """Return how many processes a job will start on a node; None where only the job itself will know.

    Arguments are those of `check_tensor_parallel`.
    """
    gpus = gpus_per_node(job)
    # The job reads the site file with its own variables, and the file may make one number of the other.
    in_job = outside_jobs(environment) | ({"SLURM_GPUS_ON_NODE": str(gpus)} if gpus else {})
    number = read_site(root, in_job).get(_VARIABLE)
    return int(number) if number else gpus


def gpus_per_node(job: str) -> int | None:
    """Return how many GPUs an sbatch file asks for on each node; None where it asks for none or leaves it open."""
    asked: dict[str, str] = {}  # of an option that is given twice, sbatch takes the last
    for line in takewhile(lambda line: line.startswith("#") or not line.strip(), job.splitlines()):
        if line.startswith("#SBATCH"):
            options = _OPTION.findall(re.split(r"\s#", line)[0])
            asked |= {long or _LONG[short]: value for long, short, value in options}
    for name in ("gpus-per-node", "gpus-per-task"):  # there is one task on a node
        if name in asked:
            return _number(asked[name])
    if "gpus" in asked:
        gpus, nodes = _number(asked["gpus"]), asked.get("nodes", "")
        return gpus // int(nodes) if gpus and re.fullmatch("[1-9][0-9]*", nodes) and gpus % int(nodes) == 0 else None
    gres = [part.removeprefix("gpu").lstrip(":") for part in asked.get("gres", "").split(",") if part[:3] == "gpu"]
    return _number(gres[0]) if len(gres) == 1 else None


def _number(asked: str) -> int | None:
    """Read "8" and "a100:8"; a type alone means one, and None stands for no GPU and for what is not understood."""
    match = re.fullmatch(r"(?:(?P<type>[a-z][\w-]*)(?::|$))?(?P<number>\d*)(?:\(.*\))?", asked, re.I)
    if match is None:
        return None
    return int(match["number"] or 1) or None
