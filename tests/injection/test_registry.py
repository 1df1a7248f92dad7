"""The list of sources: every name opens, others are refused in one line, and settings are checked without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_config import read
from trelm_ds.errors import UserError
from trelm_ds.injection import InjectionSource
from trelm_ds.injection_sources import NO_INJECTION, SOURCES, source_class


@pytest.mark.parametrize("name", [*SOURCES, NO_INJECTION])
def test_every_name_opens_a_source(name: str) -> None:
    found = source_class(name)
    assert issubclass(found, InjectionSource)
    assert (name == NO_INJECTION) == (found is source_class("encoder") and name != "encoder")


@pytest.mark.parametrize("name", [*SOURCES, NO_INJECTION])
def test_a_file_goes_with_the_sources_that_read_one(name: str) -> None:
    reads_file = name in SOURCES and SOURCES[name].reads_file
    arguments = ["--injection.source", name]
    with_file = [*arguments, "--injection.file", "v.npy"]
    good, bad = (with_file, arguments) if reads_file else (arguments, with_file)
    assert read(*good).injection.source == name
    wrong = f"required by injection.source {name}" if reads_file else "goes with injection.source file or transe"
    with pytest.raises(UserError, match=f"^--injection.file: {wrong}"):
        read(*bad)


def test_an_unknown_name_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("injection:\n  source: encodr\n  file: v.npy\n")
    with pytest.raises(UserError) as error:
        read("--config", str(path))
    names = ", ".join([*SOURCES, NO_INJECTION])
    assert str(error.value) == (
        f"{path}:2: injection.source: must be one of {names}, got encodr; did you mean encoder?"
    )
    with pytest.raises(UserError, match=r"^--injection.source: must be one of .*, got zebra$"):
        read("--injection.source", "zebra")


def test_settings_are_checked_without_torch() -> None:
    code = "import sys, trelm_ds.settings, trelm_ds.config_rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
