"""What CONTRIBUTING.md has newcomers copy works, and docs/knowledge.md knows every source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.injection.contexts import filled, open_context
from trelm_ds.distributed import Ranks
from trelm_ds.injection_sources import NO_INJECTION, SOURCES, Registration

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_of_the_guide_works(
    one_rank: Ranks, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an injection source")[1]
    module, registration = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[:2]
    name, target = re.findall(r'"([^"]+)"', registration)
    (tmp_path / "example_source.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, name, Registration(f"example_source:{target.partition(':')[2]}"))
    context = open_context(dataset, one_rank, source=name)
    names, entities = context.index.names, context.index.vector_entities
    first, last = names.entity_offsets[entities[0] :][:2]
    label = torch.from_numpy(names.entity_tokens[first:last].copy()).long()
    torch.testing.assert_close(filled(context)[0], context.word[label].mean(0), rtol=1e-5, atol=1e-6)


def test_every_source_is_documented() -> None:
    table = (ROOT / "docs" / "knowledge.md").read_text()
    assert set(
        re.findall(r"^\| `(\w+)` \|", table.split("| `injection.source` |")[1].split("\n\n")[0], re.MULTILINE)
    ) == {
        *SOURCES,
        NO_INJECTION,
    }
