"""Progress where there is no terminal."""

from __future__ import annotations

import re

import pytest

from trelm_ds import progress
from trelm_ds.progress import ProgressBar


def test_each_line_stands_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    with ProgressBar("work", 3, initial=1) as bar:
        bar.advance()
        bar.advance(note="fast")
    told = [re.sub(r" in \d+ s", "", message) for message in caplog.messages]
    assert told == ["work: 2/3", "work: 3/3  fast"]


def test_what_no_line_has_told_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with ProgressBar("work", None) as bar:
        bar.advance()
    with ProgressBar("nothing", None):
        pass
    assert [message.split(" in ")[0] for message in caplog.messages] == ["work: 1"]
