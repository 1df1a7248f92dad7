"""The benchmark of the text of dumps counts templates and glued words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_counts_templates_and_words(tmp_path: Path) -> None:
    page = "<page><title>{}</title><ns>0</ns><id>1</id><revision><text>{}</text></revision></page>"
    text = "A [[bus]]es line in {{nowrap|one two}}{{who}} with 19&lt;!-- --&gt;14 of A{{lang|de|bc}}d."
    pages = page.format("A", text) + page.format("B", "#REDIRECT [[A]]") + page.format("C", "{{dab}}")
    (tmp_path / "dump").write_text(f"<mediawiki>{pages}</mediawiki>")
    (tmp_path / "words").write_text(json.dumps({"text": "a line"}) + "\n")
    command = [sys.executable, str(ROOT / "tools" / "bench" / "wikitext.py"), "--label", "it"]
    command += ["--excerpt", str(tmp_path / "dump"), "--words", str(tmp_path / "words")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[2].startswith("| it | 1 | 10 | 1 | 0 | 2 | 1 | 2 | ")
    assert lines[3:5] == ["left out: who 1", "glued: 1914 1, Abcd 1"]
