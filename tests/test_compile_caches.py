"""Where kernels are kept once they are compiled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.distributed import run_distributed_test
from tests.logged import warns
from trelm_ds import compile_caches
from trelm_ds.compile_caches import use_local_caches
from trelm_ds.distributed import connect, disconnect

NAMES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node n7 with the folders `job` and `own` for temporary files, both on a local disk."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the tests make of it is undone
    for variable, name in (("SLURM_TMPDIR", "job"), ("TMPDIR", "own")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("LOCAL_RANK", "3")
    mount(monkeypatch, tmp_path)


def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("".join(f"{line} 0 0\n" for line in ("/dev/sda / ext4 rw", *lines)))
    monkeypatch.setattr(compile_caches, "_MOUNTS", mounts)


def found() -> list[str]:
    use_local_caches()
    return [os.environ[name] for name in NAMES]


def place(base: Path) -> list[str]:
    folder = base / f"trelm-cache-{os.getuid()}" / "n7" / "rank-3"
    return [f"{folder}/triton", f"{folder}/inductor"]


def test_the_jobs_own_folder_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found() == place(tmp_path / "job")
    assert Path(found()[0]).parent.is_dir()
    for name in NAMES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "gone"))
    assert found() == place(tmp_path / "own")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/fast/triton")
    assert found() == ["/fast/triton", place(tmp_path / "job")[1]]


@pytest.mark.parametrize(
    "of_job",
    ["nfs:/a {}/job nfs4 rw", "a@tcp:/b {}/job lustre rw", "x {}/job fuse.sshfs rw", "tmpfs {}/job tmpfs rw,noexec"],
)
def test_shared_disks_and_those_without_programs_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of_job: str
) -> None:
    mount(monkeypatch, tmp_path, "nfs:/home /home nfs4 rw", of_job.format(tmp_path))
    assert found() == place(tmp_path / "own")


def test_the_mount_that_hides_others_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "a b"))
    blank = str(tmp_path / "a b").replace(" ", r"\040")
    mount(monkeypatch, tmp_path, f"nfs:/a {tmp_path} nfs rw", f"nfs:/b {blank} nfs rw", f"/dev/nvme0 {blank} xfs rw")
    assert found() == place(tmp_path / "a b")


@pytest.mark.parametrize("trap", ["open to all", "a link"])
def test_a_folder_that_others_can_fill_is_passed_over(tmp_path: Path, trap: str) -> None:
    root = tmp_path / "job" / f"trelm-cache-{os.getuid()}"
    if trap == "a link":
        root.symlink_to(tmp_path / "own")
    else:
        root.mkdir()
        root.chmod(0o777)
    assert found() == place(tmp_path / "own")
    assert not list((tmp_path / "job").glob("*/n7"))


def test_where_there_is_no_place_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mount(monkeypatch, tmp_path, "nfs:/all / nfs rw")
    with warns("set TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR"):
        assert found() == ["", ""]


def test_every_rank_has_its_own() -> None:
    caches = run_distributed_test(_caches, 2)
    assert [Path(triton).parent.name for triton, _ in caches] == ["rank-0", "rank-1"]
    assert all(Path(triton).parent == Path(inductor).parent for triton, inductor in caches)


def _caches() -> list[str]:
    for name in NAMES:
        os.environ.pop(name, None)
    connect()
    disconnect()
    return [os.environ[name] for name in NAMES]
