"""Parallel, killed, divided, damaged: the dataset is the same to the byte, whatever happened on the way."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.conftest import CITIES, PEOPLE, write_corpus
from tests.e2e.launch import trelm
from tests.forked import Command
from tests.logged import warns
from trelm_ds.corpus import PrepareOptions, missing_parts, prepare
from trelm_ds.errors import UserError

_CHUNK_MB = 0.002


def write_dump(folder: Path, articles: int = 120) -> None:
    """The same articles in every layout a dump can have: plain, one bzip2 stream, multistream, two numbered parts."""
    pages = []
    for number in range(articles):
        person, city = PEOPLE[number % len(PEOPLE)], CITIES[number % len(CITIES)]
        text = f"'''{person}''' is a person {number} who lives in [[{city}]] and likes [[{CITIES[0]}|the capital]]. "
        pages.append(
            f"  <page>\n    <title>{person} {number}</title>\n    <ns>0</ns>\n    <id>{number + 1}</id>\n    <revision>"
            f"<text>{text * (1 + number % 7)}</text></revision>\n  </page>\n"
        )
    head, foot = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n', "</mediawiki>\n"
    for name in ("plain", "one", "multi", "parts"):
        (folder / name).mkdir(parents=True)
    whole = (head + "".join(pages) + foot).encode()
    (folder / "plain" / "dump.xml").write_bytes(whole)
    (folder / "one" / "dump.xml.bz2").write_bytes(bz2.compress(whole))
    groups = ["".join(pages[first : first + 10]) for first in range(0, articles, 10)]
    streams = [head, *groups, foot]
    (folder / "multi" / "dump.xml.bz2").write_bytes(b"".join(bz2.compress(part.encode()) for part in streams))
    (folder / "multi" / "dump-multistream-index.txt.bz2").write_bytes(bz2.compress(b"1:2:x"))
    half = articles // 2
    (folder / "parts" / "dump9.xml").write_text(head + "".join(pages[:half]) + foot)
    (folder / "parts" / "dump10.xml").write_text(head + "".join(pages[half:]) + foot)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=300)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes(), mtime=0))
    write_dump(folder / "wiki")
    return folder


def options(corpus: Path, source: str, out: Path, **changes: object) -> PrepareOptions:
    values = {"source": corpus / source, "wikidata5m": corpus / "wikidata5m", "tokenizer": "train", "out": out}
    sizes = {"max_length": 32, "vocab_size": 300, "min_words": 4, "chunk_mb": _CHUNK_MB}
    return PrepareOptions(**values | sizes | changes)  # type: ignore[arg-type]


def content(folder: Path, leave: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file; `leave` takes out those in which the source's hash stands."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in leave)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def data_of(folder: Path) -> dict[str, bytes]:
    return content(folder, leave=("manifest.json", "README.md"))


@pytest.mark.parametrize("link_entities", [False, True])
@pytest.mark.parametrize("source", ["corpus.jsonl", "corpus.jsonl.gz", "wiki/plain", "wiki/one", "wiki/multi"])
def test_the_result_does_not_depend_on_chunks(corpus: Path, tmp_path: Path, source: str, link_entities: bool) -> None:
    linking = {"link_entities": link_entities, "link_threshold": 0.0}
    manifest, _ = prepare(options(corpus, source, tmp_path / "whole", chunk_mb=100, **linking))
    assert manifest is not None
    assert ("mentions added by the linker" in manifest.counts) == (link_entities and "wiki" in source)
    for chunk_mb in (0.001, 0.0033):
        prepare(options(corpus, source, tmp_path / f"cut{chunk_mb}", chunk_mb=chunk_mb, **linking))
        assert content(tmp_path / f"cut{chunk_mb}") == content(tmp_path / "whole")


def test_the_result_does_not_depend_on_how_the_dump_is_stored(corpus: Path, tmp_path: Path) -> None:
    for name in ("plain", "one", "multi", "parts"):
        manifest, _ = prepare(options(corpus, f"wiki/{name}", tmp_path / name))
        assert manifest is not None
        assert manifest.counts["articles"] == 120
        assert data_of(tmp_path / name) == data_of(tmp_path / "plain")


@pytest.mark.parametrize("source", ["corpus.jsonl.gz", "wiki/multi"])
def test_parts_in_any_order_then_the_merge(corpus: Path, tmp_path: Path, source: str) -> None:
    prepare(options(corpus, source, tmp_path / "whole"))
    for part in (3, 1, 2):
        assert prepare(options(corpus, source, tmp_path / "ds", part=(part, 3))) == (None, True)
        assert not (tmp_path / "ds").exists()
    prepare(options(corpus, source, tmp_path / "ds", merge=True))
    assert content(tmp_path / "ds") == content(tmp_path / "whole")
    assert prepare(options(corpus, source, tmp_path / "ds", part=(2, 3))) == (None, False)


def test_the_merge_names_the_parts_that_are_missing(corpus: Path, tmp_path: Path) -> None:
    for part in (1, 3):
        prepare(options(corpus, "wiki/plain", tmp_path / "ds", part=(part, 4)))
    with pytest.raises(UserError, match=r"--merge: \d+ of \d+ chunks .* run --part 2/4, 4/4, then --merge"):
        prepare(options(corpus, "wiki/plain", tmp_path / "ds", merge=True))
    assert not (tmp_path / "ds").exists()


def test_parts_are_missing_until_their_last_chunk_is_on_disk(corpus: Path, tmp_path: Path) -> None:
    asked = options(corpus, "wiki/plain", tmp_path / "ds")
    assert missing_parts(asked, 3) == [1, 2, 3]
    assert not list(tmp_path.iterdir())
    for part in (1, 3):
        prepare(dataclasses.replace(asked, part=(part, 3)))
    assert missing_parts(asked, 3) == [2]
    assert missing_parts(asked, 4) == [1, 2, 3, 4]
    prepare(dataclasses.replace(asked, part=(2, 3)))
    assert missing_parts(asked, 3) == []
    with patch("trelm_ds.corpus.pipeline._extract", _fail), pytest.raises(UserError, match="on purpose"):
        prepare(dataclasses.replace(asked, part=(3, 3)))  # begun again, so it has to end again
    assert missing_parts(asked, 3) == [3]
    prepare(dataclasses.replace(asked, part=(3, 3)))
    prepare(dataclasses.replace(asked, merge=True))
    assert missing_parts(asked, 3) == []
    assert missing_parts(asked, 4) == []
    with pytest.raises(UserError, match=r"holds a dataset made from another request \(min_words\)"):
        missing_parts(dataclasses.replace(asked, min_words=5), 3)


def test_parts_of_another_request_are_missing(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes((corpus / "corpus.jsonl").read_bytes())
    asked = options(corpus, str(source), tmp_path / "ds")
    for part in (1, 2):
        prepare(dataclasses.replace(asked, part=(part, 2)))
    assert missing_parts(asked, 2) == []
    for change in ({"min_words": 5}, {"chunk_mb": 1.0}):
        assert missing_parts(dataclasses.replace(asked, **change), 2) == [1, 2]
    with source.open("ab") as stream:
        stream.write(b'{"text": "One line more."}\n')
    assert missing_parts(asked, 2) == [1, 2]
    with pytest.raises(UserError, match="missing or outdated; run all parts again"):
        prepare(dataclasses.replace(asked, merge=True))


@pytest.mark.parametrize("change", [{"part": (1, 2)}, {"merge": True}, {}])
def test_missing_parts_takes_a_number_alone(corpus: Path, tmp_path: Path, change: dict) -> None:
    with pytest.raises(UserError, match="--missing-parts: takes the number of parts"):
        missing_parts(options(corpus, "wiki/plain", tmp_path / "ds", **change), 2 if change else 0)


@pytest.mark.parametrize("source", ["corpus.jsonl", "corpus.jsonl.gz", "wiki/plain", "wiki/multi"])
def test_pieces_of_another_size_are_not_taken(corpus: Path, tmp_path: Path, source: str) -> None:
    prepare(options(corpus, source, tmp_path / "whole"))
    for before, after in ((0.002, 0.004), (0.008, 0.002), (0.002, 100)):
        out = tmp_path / f"{before}-{after}"
        prepare(options(corpus, source, out, chunk_mb=before, part=(1, 1)))
        prepare(options(corpus, source, out, chunk_mb=after))
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_record_has_behind_its_chunk_counts(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": "word " * 400_000 + "here."}), json.dumps({"text": "A last line."})]
    source.write_text("\n".join(lines))
    prepare(options(corpus, str(source), tmp_path / "ds", chunk_mb=0.4, part=(1, 1)))
    source.write_text("\n".join(lines).replace("here", "city"))
    for name in ("ds", "fresh"):
        prepare(options(corpus, str(source), tmp_path / name, chunk_mb=0.4, max_length=512))
    assert content(tmp_path / "ds") == content(tmp_path / "fresh")


def test_settings_that_change_on_the_way_change_the_result(corpus: Path, tmp_path: Path) -> None:
    """Pieces made under other settings are in the way, but never in the dataset."""
    graph = tmp_path / "graph"
    shutil.copytree(corpus / "wikidata5m", graph)
    with (graph / "wikidata5m_all_triplet.txt").open("a") as stream:
        stream.write("broken\n")
    asked = options(corpus, "wiki/plain", tmp_path / "ds", wikidata5m=graph)
    lenient = dataclasses.replace(asked, max_malformed=0.5)
    with (
        patch("trelm_ds.corpus.pipeline.Pipeline._sequences", _fail),
        warns("left out"),
        pytest.raises(UserError, match="on purpose"),
    ):
        prepare(lenient)
    with pytest.raises(UserError, match=r"wikidata5m_all_triplet.txt:41: .*--max-malformed"):
        prepare(asked)


def _fail(*_: object, **__: object) -> None:
    raise UserError("on purpose")


def test_parts_leave_malformed_records_to_the_merge(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{broken\n" + (corpus / "corpus.jsonl").read_text())
    for part in (1, 2):
        prepare(options(corpus, str(source), tmp_path / "ds", part=(part, 2)))
    with pytest.raises(UserError, match=r"in.jsonl:1: not valid JSON.*1 of 301 records malformed"):
        prepare(options(corpus, str(source), tmp_path / "ds", merge=True))


def test_finished_pieces_are_recognised_by_content(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes((corpus / "corpus.jsonl").read_bytes())
    prepare(options(corpus, str(source), tmp_path / "ds", part=(1, 1)))
    documents = tmp_path / ".ds.partial" / "documents"
    made = {path.name: path.stat().st_mtime_ns for path in documents.iterdir()}
    assert len(made) > 5
    data = source.read_bytes()
    source.write_bytes(data[:-250] + data[-250:].replace(b"lives", b"stays"))  # the same length, another last chunk
    damaged = documents / sorted(made)[1] / "documents.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (documents / sorted(made)[2] / "done.json").write_text("{")
    prepare(options(corpus, str(source), tmp_path / "ds", part=(1, 1)))
    again = {path.name for path in documents.iterdir() if path.stat().st_mtime_ns != made[path.name]}
    # A record may end behind its chunk, so the change counts for the chunks before it as well, as far as that may be.
    assert {sorted(made)[1], sorted(made)[2], sorted(made)[-1]} <= again
    prepare(options(corpus, str(source), tmp_path / "ds"))
    prepare(options(corpus, str(source), tmp_path / "fresh"))
    assert content(tmp_path / "ds") == content(tmp_path / "fresh")


def entries(folder: Path) -> int:
    return len([path for path in folder.glob("*") if not path.name.startswith(".")]) if folder.is_dir() else 0


# When to kill, told by what the work folder holds.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while the first chunks are read": lambda work: entries(work / "documents") >= 2,
    "while the last chunks are read": lambda work: entries(work / "documents") >= 12,
    "while the graph is built": lambda work: bool(list(work.glob(".graph.*"))) or (work / "graph").exists(),
    "after the titles": lambda work: (work / "titles").exists(),
    "while names are encoded": lambda work: bool(list(work.glob(".names.*"))) or (work / "names").exists(),
    "while sequences are written": lambda work: entries(work / "sequences") >= 3,
    "while shards are assembled": lambda work: (work / "dataset").exists(),
    "before the dataset is put in place": lambda work: (work / "dataset" / "manifest.json").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["corpus.jsonl.gz", "wiki/plain"])
def test_killed_at_any_moment_and_run_again(corpus: Path, tmp_path: Path, source: str) -> None:
    prepare(options(corpus, source, tmp_path / "whole"))
    command = ["prepare", "--source", corpus / source, "--wikidata5m"]
    command += [corpus / "wikidata5m", "--tokenizer", "train", "--max-length", "32", "--vocab-size", "300"]
    command += ["--min-words", "4", "--chunk-mb", str(_CHUNK_MB), "--workers", "2", "--out", tmp_path / "ds"]
    work = tmp_path / ".ds.partial"
    kills = 0
    for moment in MOMENTS.values():
        process = Command([*map(str, command)])
        while process.poll() is None and not moment(work):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "ds").exists():  # the last kill may come just behind the rename
            assert content(tmp_path / "ds") == content(tmp_path / "whole")
    assert kills >= 5  # the last moments are short
    assert not workers_of(tmp_path)
    last = trelm(*command)
    assert last.returncode == 0, last.stderr
    assert content(tmp_path / "ds") == content(tmp_path / "whole")
    assert not work.exists()


def test_what_is_announced_is_on_disk(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a file that was renamed but not flushed may be empty."""
    flushed: dict[int, float] = {}
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        flushed[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_mtime_ns

    def checked(self: Path, target: Path) -> Path:
        if target == tmp_path / "ds":
            for path in (self, *self.rglob("*")):
                assert flushed.get(path.stat().st_ino) == path.stat().st_mtime_ns, path
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    prepare(options(corpus, "wiki/plain", tmp_path / "ds"))
    assert (tmp_path / "ds").stat().st_ino in flushed
    assert tmp_path.stat().st_ino in flushed


def workers_of(folder: Path) -> list[str]:
    """Processes that still have something of `folder` in their command line or files."""
    time.sleep(0.2)
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                links = [os.readlink(link) for link in (process / "fd").iterdir()]
            except OSError:
                continue
            found += [link for link in links if link.startswith(str(folder))]
    return found


def test_malformed_records_within_the_budget_are_left_out(corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        (corpus / "corpus.jsonl").read_text() + "{broken\n" + json.dumps({"text": "The end of it."}) + "\n"
    )
    with pytest.raises(UserError, match=r"in.jsonl:301: not valid JSON.*1 of 302 records malformed, --max-malformed"):
        prepare(options(corpus, str(source), tmp_path / "ds"))
    with warns("left out: .*in.jsonl:301: not valid JSON"):
        manifest, _ = prepare(options(corpus, str(source), tmp_path / "ds", max_malformed=0.01))
    assert manifest is not None
    assert manifest.counts["records left out: malformed"] == 1
    assert manifest.counts["documents"] == 301
