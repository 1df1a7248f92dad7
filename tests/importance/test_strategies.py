"""The table of what each strategy keeps, counted again by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trelm_ds.cli import main
from trelm_ds.config import SelectionConfig
from trelm_ds.errors import UserError
from trelm_ds.importance import (
    ImportanceScores,
    ScoreOptions,
    compare_strategies,
    format_strategies,
    load_frequencies,
    score_dataset,
)
from trelm_ds.knowledge import STRATEGIES
from trelm_ds.shards import Manifest, ShardReader


def by_hand(data: Path, scores: ImportanceScores | None, limit: int, bar: float | None) -> dict[str, dict[str, int]]:
    """Number of mentions, entities and sequences kept by each strategy, one mention at a time."""
    frequencies = load_frequencies(data)
    counts = dict(zip(frequencies.qids.tolist(), frequencies.counts.tolist(), strict=True))
    known = dict(zip(frequencies.qids.tolist(), frequencies.has_triple.tolist(), strict=True))
    reader = ShardReader(data)
    cosines = iter(np.concatenate([scores.block(n) for n in range(len(reader.block_sizes))]) if scores else [])
    kept: dict[str, list[tuple[int, int]]] = {name: [] for name in STRATEGIES}
    for sample in range(reader.manifest.n_sequences):
        mentions = [(int(qid), next(cosines, np.float16(0))) for _, _, qid in reader.sequence(sample).mentions]
        for name in STRATEGIES:
            fitting = {
                "long_tail": lambda qid: counts[qid] < frequencies.mean,
                "high_frequency": lambda qid: counts[qid] >= frequencies.mean,
                "all": lambda qid: True,
                "none": lambda qid: False,
            }[name]
            mine = [m for m in mentions if fitting(m[0]) and known[m[0]] and (bar is None or m[1] <= bar)]
            mine.sort(key=lambda m: counts[m[0]] if bar is None else m[1])  # stable: ties by position
            kept[name] += [(sample, qid) for qid, _ in mine[:limit]]
    return {
        name: {
            "mentions": len(found),
            "entities": len({qid for _, qid in found}),
            "sequences": len({sample for sample, _ in found}),
        }
        for name, found in kept.items()
    }


def numbers(kept: dict) -> dict:
    return {name: {what: found["number"] for what, found in of.items()} for name, of in kept.items() if of}


@pytest.mark.parametrize("limit", [1, 8])
def test_the_table_is_what_counting_gives(data: Path, backbone: Path, limit: int) -> None:
    selection = SelectionConfig(quantile=0.3, max_per_sequence=limit)
    plain = compare_strategies(data, selection)
    assert list(plain["kept"]) == ["by frequency"]
    assert numbers(plain["kept"]["by frequency"]) == by_hand(data, None, limit, None)
    assert "no importance scores: --quantile has no effect" in format_strategies(plain)

    score_dataset(ScoreOptions(data, backbone, scope="all"))
    scored = compare_strategies(data, selection)
    assert scored["kept"]["by frequency"] == plain["kept"]["by frequency"]
    kept = numbers(scored["kept"]["by frequency and importance"])
    assert kept == by_hand(data, ImportanceScores(data, Manifest.load(data)), limit, scored["bar"])
    assert 0 < kept["long_tail"]["mentions"] < kept["all"]["mentions"]
    assert kept["long_tail"]["mentions"] < numbers(plain["kept"]["by frequency"])["long_tail"]["mentions"]
    shares = scored["kept"]["by frequency and importance"]["all"]
    assert shares["mentions"]["share"] == kept["all"]["mentions"] / 800
    assert scored["long_tail"]["threshold"] == 800 / 52
    assert "important: a cosine of at most" in format_strategies(scored)


def test_long_tail_scores_say_nothing_of_the_others(data: Path, backbone: Path) -> None:
    score_dataset(ScoreOptions(data, backbone))
    result = compare_strategies(data, SelectionConfig())
    kept = result["kept"]["by frequency and importance"]
    assert {name for name, found in kept.items() if found is None} == {"high_frequency", "all"}
    assert result["scores"]["scope"] == "long_tail"
    assert format_strategies(result).count("not scored: needs `trelm importance --scope all`") == 2


def test_without_entity_frequencies(data: Path) -> None:
    shutil.rmtree(data / "entities")
    with pytest.raises(UserError, match=r"entities/counts.npy: missing; restore it"):
        compare_strategies(data, SelectionConfig())


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "strategies.json"
    with pytest.raises(SystemExit) as ended:
        main(["strategies", str(data), "--out", str(out), "--max-per-sequence", "1", "--entity-threshold", "11"])
    assert ended.value.code == 0
    result = json.loads(out.read_text())
    assert result == compare_strategies(data, SelectionConfig(entity_threshold=11, max_per_sequence=1))
    assert result["kept"]["by frequency"]["all"]["mentions"]["number"] == 400
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "high_frequency" in capsys.readouterr().out
    for wrong, message in (
        (["--quantile", "0"], "--quantile: must be greater than 0"),
        (["--out", str(tmp_path / "no" / "x.json")], "--out: give a file such as strategies.json"),
        (["--out", str(tmp_path / "x.png")], "--out: give a file such as strategies.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["strategies", str(data), *wrong])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
