"""Damaged and hostile input: one clear line or a counted loss, nothing executed, nothing written elsewhere."""

from __future__ import annotations

import bz2
import gzip
import io
import pickle
import random
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.corpus.test_restart import write_dump
from tests.logged import warns
from trelm_ds.corpus import PrepareOptions, extract, prepare, records, wikipedia
from trelm_ds.corpus.records import layout_of, read_range, read_stream, records_in
from trelm_ds.corpus.wikipedia import article_of, parse_page
from trelm_ds.corpus.wikitext import paragraphs_of
from trelm_ds.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=80)
    write_dump(folder / "wiki", articles=40)
    return folder


def outcome(corpus: Path, source: Path, out: Path, **changes: object) -> str:
    """ "made", or the one line that says why not; anything else than a UserError fails the test."""
    sizes = {"max_length": 32, "vocab_size": 300, "min_words": 4, "chunk_mb": 0.002, "max_malformed": 0.5}
    values = {"source": source, "wikidata5m": corpus / "wikidata5m", "tokenizer": "train", "out": out}
    try:
        prepare(PrepareOptions(**values | sizes | changes))  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
    else:
        return "made"
    assert "\n" not in message
    assert not out.exists()
    return message


@pytest.mark.parametrize("name", ["plain/dump.xml", "one/dump.xml.bz2", "multi/dump.xml.bz2"])
def test_a_dump_cut_off_anywhere_is_refused(corpus: Path, tmp_path: Path, name: str) -> None:
    data = (corpus / "wiki" / name).read_bytes()
    draw = random.Random(5)
    for number, cut in enumerate([len(data) // 2, len(data) - 14, *(draw.randrange(200, len(data)) for _ in range(6))]):
        source = tmp_path / str(number) / Path(name).name
        source.parent.mkdir()
        source.write_bytes(data[:cut])
        message = outcome(corpus, source, tmp_path / f"ds{number}")
        assert "truncated" in message, (cut, message)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain/dump.xml", "one/dump.xml.bz2", "multi/dump.xml.bz2", "corpus.jsonl"])
def test_flipped_bytes_are_no_crash(corpus: Path, tmp_path: Path, name: str) -> None:
    path = corpus / name if name == "corpus.jsonl" else corpus / "wiki" / name
    original = path.read_bytes()
    for seed in range(12):
        draw = random.Random(seed)
        data = bytearray(original)
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(4, len(data))] = draw.randrange(256)
        source = tmp_path / f"in{seed}"
        source.write_bytes(data)
        outcome(corpus, source, tmp_path / f"ds{seed}")
    assert {path.name.lstrip(".")[:2] for path in tmp_path.iterdir()} <= {"in", "ds"}


def test_a_malformed_page_is_left_out_and_counted(corpus: Path, tmp_path: Path) -> None:
    data = (corpus / "wiki" / "plain" / "dump.xml").read_bytes()
    bad = [
        b"<page><title>\xff\xfe</title><ns>0</ns><revision><text>x</text></revision></page>",
        b"<page><title>A</title><revision><text>&lol;</text></revision></page>",
        b"<page><title>B</revision></page>",
        b"<page><title>C</title><ns>0</ns><revision><text>a<!ENTITY b></text></revision></page>",
    ]
    (tmp_path / "dump").write_bytes(data.replace(b"</mediawiki>", b"".join(bad) + b"</mediawiki>"))
    options = PrepareOptions(
        tmp_path / "dump", corpus / "wikidata5m", "train", tmp_path / "ds", 32, 300, min_words=4, max_malformed=0.2
    )
    with warns("left out: .*dump: byte [0-9]+: a page that is not valid XML"):
        manifest, _ = prepare(options)
    assert manifest is not None
    assert (manifest.counts["records left out: malformed"], manifest.counts["articles"]) == (4, 40)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"<?xml version='1.0' encoding='latin-1'?><mediawiki>", "its encoding is latin-1; convert it to UTF-8"),
        (b"<html><body>404</body></html>", "its first element is <html>"),
        (b"\x1f\x8b\x08garbage", "damaged or truncated"),
        (b"BZh9garbage", "damaged or truncated"),
        (b"", "neither a MediaWiki dump"),
        (b"PK\x03\x04", "neither a MediaWiki dump"),
        (pickle.dumps({"text": 1}), "neither a MediaWiki dump"),
    ],
)
def test_files_of_another_kind(corpus: Path, tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "in").write_bytes(start)
    assert message in outcome(corpus, tmp_path / "in", tmp_path / "ds")


def test_a_line_and_a_page_without_end(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LARGEST_RECORD", 1 << 20)
    inputs = {
        "line": b'{"text": "' + b"a" * (3 << 20),
        "line.gz": gzip.compress(b'{"text": "' + b"a" * (30 << 20)),
        "page": b"<mediawiki><page>" + b"a" * (3 << 20),
        "page.bz2": bz2.compress(b"<mediawiki>") + bz2.compress(b"<page>" + b"a" * (30 << 20)),
    }
    for name, data in inputs.items():
        (tmp_path / name).write_bytes(data)
        assert "a record of more than 1 MiB" in outcome(corpus, tmp_path / name, tmp_path / "ds", chunk_mb=0.5), name


@pytest.mark.parametrize("seed", range(8))
def test_ranges_give_every_record_once(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pages = [f"<page>{n}{'x' * draw.choice([0, 5, 70, 3000, 2_000_000 // (1 + 9 * n)])}</page>" for n in range(20)]
    gaps = ["\n" * draw.choice([0, 1, 200]) for _ in pages]
    text = "<mediawiki>" + "".join(gap + page for gap, page in zip(gaps, pages, strict=True)) + "</mediawiki>"
    (tmp_path / "plain").write_text(text)
    cuts = sorted(draw.sample(range(len(text)), 12))  # streams that end within pages and tags
    streams = [text[first:last] for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    (tmp_path / "multi").write_bytes(b"".join(bz2.compress(part.encode()) for part in streams))
    lines = [page.replace("\n", "") for page in pages]
    (tmp_path / "lines").write_text("\n".join(lines))
    for name, kind in (("plain", "mediawiki"), ("multi", "mediawiki"), ("lines", "linked")):
        path = tmp_path / name
        size = path.stat().st_size
        layout = layout_of(path, kind)  # type: ignore[arg-type]
        assert layout == ("multistream" if name == "multi" else "plain")
        step = draw.choice([size, size // 2 + 1, size // 7 + 1, 50 if size < 20_000 else size // 90])
        found = [
            record.data.decode()
            for first in range(0, size, step)
            for record in read_range(path, layout, kind, first, min(size, first + step))  # type: ignore[arg-type]
        ]
        assert found == pages
    for size in (1, 100, 5000, 1 << 30):
        for name, kind in (("plain", "mediawiki"), ("lines", "linked")):
            chunks = list(read_stream(tmp_path / name, kind, size))  # type: ignore[arg-type]
            found = [r.data.decode() for data, _, last in chunks for r in records_in(data, kind, last, tmp_path)]  # type: ignore[arg-type]
            assert [page for page in found if page] == pages
            assert [last for _, _, last in chunks] == [False] * (len(chunks) - 1) + [True]


HOSTILE = {
    "templates": "{{a|" * 20_000,
    "comments": "<!--" * 50_000,
    "external links": "[http://a " * 20_000,
    "links": "[[a|" * 20_000,
    "tags": "<b>" * 30_000,
    "references": "<ref>" * 30_000,
    "references and other tags": "<ref></i>" * 30_000,
    "blanks": ("{{" + " " * 6000 + "\n") * 10,
    "redirect": "#REDIRECT" + " " * 100_000,
    "tables": "{|\n" * 30_000,
    "disambiguation": "{{" + "disambig" * 20_000,
    "nested and closed": "{{a|" * 5000 + "}}" * 5000,
    "closed before opened": "}}" * 20_000 + "{{a|" * 20_000,
    "brackets": "(" * 50_000 + ";" * 50_000,
    "entities": "&amp" * 50_000,
    "quotes": "'''''" * 20_000 + " word" * 10,
    "nulls": "\x01\x02 word" * 10_000,
    "mixture": "[[{{<b>'''[http://a {|\n==x" * 5_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_wikitext_ends(name: str) -> None:
    page = parse_page(b"<page><title>T</title><id>7</id><revision><text>some words of text</text></revision></page>")
    assert page is not None
    counts: Counter[str] = Counter()
    text = "Some words before it all. " + HOSTILE[name]
    article = article_of(page._replace(text=text), 1, counts)
    assert (article is None) == bool(
        counts["pages dropped: unclosed markup"] or counts["pages dropped: disambiguation"]
    )


def test_deeply_nested_markup_keeps_its_text() -> None:
    text = "<small>" * 30 + "Some words that stay." + "</small>" * 30
    assert [paragraph.text for paragraph in paragraphs_of(text)] == ["Some words that stay."]


class _Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_archives_are_read_but_never_unpacked(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "graph"
    folder.mkdir()
    files = {name.name: name.read_bytes() for name in (corpus / "wikidata5m").iterdir()}
    with tarfile.open(folder / "wikidata5m_alias.tar.gz", "w:gz") as archive:
        members = {
            "../../../wikidata5m_relation.txt": files["wikidata5m_relation.txt"],
            "/etc/evil": b"x",
            "x/wikidata5m_entity.txt": files["wikidata5m_entity.txt"],
            "bomb.pkl": pickle.dumps(_Bomb()),
        }
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
        link = tarfile.TarInfo("wikidata5m_all_triplet.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source, before = corpus / "corpus.jsonl", sorted(tmp_path.iterdir())
    assert "lacks wikidata5m_all_triplet.txt" in outcome(corpus, source, tmp_path / "ds", wikidata5m=folder)
    with tarfile.open(folder / "wikidata5m_transductive.tar.gz", "w:gz") as archive:
        for split in ("train", "valid", "test"):
            about = tarfile.TarInfo(f"wikidata5m_transductive_{split}.txt")
            about.size = len(files["wikidata5m_all_triplet.txt"])
            archive.addfile(about, io.BytesIO(files["wikidata5m_all_triplet.txt"]))
    assert outcome(corpus, source, tmp_path / "ds", wikidata5m=folder) == "made"
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "ds"])
    data = (folder / "wikidata5m_transductive.tar.gz").read_bytes()
    (folder / "wikidata5m_transductive.tar.gz").write_bytes(data[: len(data) // 2])
    message = outcome(corpus, source, tmp_path / "ds2", wikidata5m=folder)
    assert "damaged or truncated archive" in message


def test_a_bzip2_bomb_is_recognised_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LARGEST_RECORD", 2 << 20)
    (tmp_path / "bomb").write_bytes(bz2.compress(bytes(50 << 20)) * 2)
    tracemalloc.start()
    try:
        assert layout_of(tmp_path / "bomb", "mediawiki") == "stream"  # its first stream goes on for too long
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_page_is_left_out_and_counted(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "_LARGEST_PAGE", 50_000)
    monkeypatch.setattr(wikipedia, "_LARGEST_TEXT", 20_000)
    page = "<page><title>{}</title><ns>0</ns><id>9</id><revision><text>{}</text></revision></page>"
    huge = page.format("Huge", "[[a]] " * 10_000) + page.format("Large", "''a'' " * 5_000)
    data = (corpus / "wiki" / "plain" / "dump.xml").read_text()
    (tmp_path / "dump").write_text(data.replace("</mediawiki>", huge + "</mediawiki>"))
    options = PrepareOptions(tmp_path / "dump", corpus / "wikidata5m", "train", tmp_path / "ds", 32, 300, min_words=4)
    manifest, _ = prepare(options)
    assert manifest is not None
    assert (manifest.counts["pages dropped: too large"], manifest.counts["articles"]) == (2, 40)
