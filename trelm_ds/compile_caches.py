"""Where a rank keeps what Triton and Inductor compile: on its node's own disk, apart from other ranks."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from trelm_ds import log

_FOLDERS = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|gpfs|mmfs|beegfs\w*|ceph|glusterfs|9p|afs|panfs|pvfs2|orangefs|wekafs|vastfs|fuse\..+"
)
_MOUNTS = Path("/proc/self/mounts")


class _Mount(NamedTuple):
    point: Path
    kind: str
    options: str


def use_local_caches() -> None:
    """Set TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR for this rank, unless they are set.

    Triton's own default is below the home folder. Where nodes share that, ranks that compile at the same time lose
    files to each other and crash (triton issue 11512, pytorch issue 173679). The folder here belongs to one node and
    one local rank, and stays for the next start. Call it once LOCAL_RANK is known and before anything compiles.
    """
    wanted = [name for name in _FOLDERS if not os.environ.get(name)]
    if not wanted:
        return
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    place = Path(f"trelm-cache-{os.getuid()}", node, f"rank-{os.environ.get('LOCAL_RANK', '0')}")
    folder = next((base / place for base in _local_folders(os.environ) if _own(base / place)), None)
    if folder is None:
        log.warning_once(
            "no folder on a local disk for compiled kernels ($SLURM_TMPDIR, $TMPDIR, /tmp): set TRITON_CACHE_DIR and "
            "TORCHINDUCTOR_CACHE_DIR to one for each rank"
        )
        return
    os.environ |= {name: str(folder / _FOLDERS[name]) for name in wanted}


def _local_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the places for temporary files that are on a local disk from which libraries can be loaded."""
    mounts = _mounts()
    for base in map(Path, (environment.get("SLURM_TMPDIR", ""), environment.get("TMPDIR", ""), "/tmp")):
        if not base.is_absolute() or not base.is_dir():  # a job's folder may be missing in its container
            continue
        resolved = base.resolve()
        # The last of the deepest: a later mount hides an earlier one.
        above = [mount for mount in mounts if resolved.is_relative_to(mount.point)]
        mount = max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)
        if mount is None or not (_NETWORK.fullmatch(mount.kind) or "noexec" in mount.options.split(",")):
            yield base


def _mounts() -> list[_Mount]:
    """Read what is mounted where; nothing where the system does not say."""
    try:
        lines = [line.split(" ") for line in _MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:
        return []
    # Blanks in paths are written as octal numbers.
    return [
        _Mount(Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line[1])), line[2], line[3])
        for line in lines
    ]


def _own(folder: Path) -> bool:
    """Make the folder; tell whether nobody else can write there: what lies in it is loaded and run."""
    root = folder.parents[1]
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()  # not of what another user's link points to
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            return False
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
