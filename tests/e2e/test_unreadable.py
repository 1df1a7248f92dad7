"""Files that may not be read, are empty, or cut off, in every command that reads them: one line, exit code 2."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.launch import trelm
from trelm_ds import cli
from trelm_ds.errors import UnreadableError

READS = {  # command -> the parts of a dataset that it reads
    "verify": ("manifest.json", "lengths.npy", "graph/entities.npy", "shard-000000.tar"),
    "strategies": ("manifest.json", "entities/qids.npy", "graph/out_offsets.npy", "shard-000000.tar"),
    "pretrain": ("manifest.json", "lengths.npy", "entities/counts.npy", "graph/in_entities.npy", "tokenizer"),
}
SPOIL: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "deep": lambda path: path.write_text("[" * 100_000),
}


def run(command: str, data: Path, out: Path) -> tuple[int, list[str]]:
    more = ["--data", data, "--out", out, "--tracking.enabled", "false"] if command == "pretrain" else [data]
    done = trelm(command, *more)
    return done.returncode, [line for line in done.stderr.splitlines() if "Traceback" in line or "error: " in line]


@pytest.mark.slow
@pytest.mark.parametrize("how", SPOIL)
@pytest.mark.parametrize("command", READS)
def test_damaged_parts_of_a_dataset_are_one_line(command: str, how: str, tiny_dataset: Path, tmp_path: Path) -> None:
    for name in READS[command]:
        data = Path(shutil.copytree(tiny_dataset, tmp_path / name.replace("/", "-")))
        SPOIL[how](data / ("tokenizer/tokenizer.json" if name == "tokenizer" else name))
        code, said = run(command, data, tmp_path / "run")
        assert "Traceback" not in " ".join(said)
        if command == "verify" and name != "manifest.json":
            assert code == 1
            continue
        assert (code, len(said)) == (2, 1), (name, said)
        assert said[0].startswith("trelm: error: ")


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.ENOSPC, 2), (errno.EIO, 1), (errno.ESTALE, 1)])
def test_a_file_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    """Whatever command meets it; the code tells a batch script whether another start may help."""

    def fail(_: object) -> int:
        raise OSError(number, os.strerror(number), "/data/wiki/graph/entities.npy")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "x"])
    assert ended.value.code == code
    assert capsys.readouterr().err == f"trelm: error: /data/wiki/graph/entities.npy: {os.strerror(number)}\n"


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.ESTALE, 1)])
def test_a_reader_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def fail(_: object) -> int:
        raise UnreadableError(Path("/data/manifest.json"), OSError(number, os.strerror(number)))

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "x"])
    assert ended.value.code == code
    assert capsys.readouterr().err == f"trelm: error: /data/manifest.json: cannot be read: {os.strerror(number)}\n"


def test_a_full_disk_is_one_line_without_a_name_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the shell has sent what is printed to a file."""

    def fail(_: object) -> int:
        with open("/dev/full", "w") as full:
            full.write("text")
        return 0

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "trelm: error: a file: No space left on device\n"


def test_another_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise OSError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(OSError, match="refused"):
        cli.main(["verify", "x"])
