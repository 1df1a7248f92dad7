"""`prepare` on dumps and linked text: what comes out, and how bad input is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_corpus
from tests.logged import warns
from trelm_ds.corpus import PrepareOptions, load_tokenizer, prepare
from trelm_ds.corpus.titles import AMBIGUOUS, REDIRECTED, TitleResolver
from trelm_ds.corpus.tokenizer import describe, train_tokenizer, word_starts
from trelm_ds.errors import UserError
from trelm_ds.knowledge import KnowledgeGraph
from trelm_ds.shards import Manifest, ShardReader, repair, verify

DROPPED = ("disambiguation", "list", "too short", "unclosed markup", "too large", "not wikitext")
PAGE = "<page><title>{}</title><ns>{}</ns><id>1</id>{}<revision><text>{}</text></revision></page>"


def write_dump(path: Path, pages: list[str]) -> None:
    opening = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">'
    path.write_bytes(bz2.compress((opening + "".join(pages) + "</mediawiki>").encode()))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "in", documents=60)
    return tmp_path / "in"


def options(corpus: Path, out: Path, **changes: object) -> PrepareOptions:
    values = {"source": corpus / "corpus.jsonl", "wikidata5m": corpus / "wikidata5m", "tokenizer": "train"}
    return PrepareOptions(**values | {"out": out, "max_length": 32, "vocab_size": 200, "min_words": 4} | changes)  # type: ignore[arg-type]


def refused(options: PrepareOptions) -> str:
    with pytest.raises(UserError) as error:
        prepare(options)
    assert "\n" not in str(error.value)
    assert not options.out.exists() or not any(options.out.glob("*.tar"))
    return str(error.value)


def test_linked_text_becomes_sequences_with_entities(corpus: Path, tmp_path: Path) -> None:
    manifest, made = prepare(options(corpus, tmp_path / "ds"))
    assert made
    assert (manifest.n_sequences, manifest.n_mentions) == (60, 120)
    first = json.loads((corpus / "corpus.jsonl").read_text().splitlines()[0])
    sequence = ShardReader(tmp_path / "ds").sequence(0)
    tokenizer = load_tokenizer(tmp_path / "ds" / "tokenizer")
    assert [f"Q{qid}" for qid in sequence.mentions[:, 2]] == [mention["qid"] for mention in first["mentions"]]
    for (start, end, _), mention in zip(sequence.mentions, first["mentions"], strict=True):
        surface = first["text"][mention["start"] : mention["end"]]
        assert tokenizer.decode(sequence.tokens[start:end]) == surface.lower()


def test_equal_requests_give_equal_bytes(corpus: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare(options(corpus, tmp_path / name))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_same_request_again_is_recognised_and_another_is_refused(corpus: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(options(corpus, tmp_path / "ds"))
    again, made = prepare(options(corpus, tmp_path / "ds"))
    assert not made
    assert again.fingerprint == manifest.fingerprint
    with pytest.raises(UserError, match="another request"):
        prepare(options(corpus, tmp_path / "ds", max_length=16))


def test_a_dump_is_read_with_redirects_and_aliases(corpus: Path, tmp_path: Path) -> None:
    redirect = '<redirect title="City01" />'
    pages = [
        PAGE.format("Person01", 0, "", "'''Person01''' lives in [[Old City|the city]] and in [[Nowhere]] &amp; so on."),
        PAGE.format("Old City", 0, redirect, "#REDIRECT [[City01]]"),
        PAGE.format("City", 0, "", "City may mean many a thing: {{disambiguation}}"),
        PAGE.format("Talk:City", 1, "", "We talk about [[City02]] here for some time."),
    ]
    (tmp_path / "wiki").mkdir()
    write_dump(tmp_path / "wiki" / "dump", pages)
    manifest, _ = prepare(options(corpus, tmp_path / "ds", source=tmp_path / "wiki"))
    counts = manifest.counts
    assert (counts["pages"], counts["articles"], counts["redirects"]) == (3, 1, 1)
    assert (counts["mentions mapped"], counts["mentions without an entity"], counts["mentions through a redirect"]) == (
        2,
        1,
        1,
    )
    assert ShardReader(tmp_path / "ds").sequence(0).mentions[:, 2].tolist() == [2, 42]  # Person01, City01


def test_pages_that_are_not_wikitext_are_left_out_and_counted(corpus: Path, tmp_path: Path) -> None:
    words = "<text>It lives in [[City02]] here for some time.</text>"
    page = "<page><title>{}</title><ns>0</ns><id>1</id><revision><model>{}</model>{}</revision></page>"
    models = {"Person01": "wikitext", "Person02": "json", "Person03": "Scribunto", "Person04": "", "Person05": "css"}
    write_dump(tmp_path / "dump", [page.format(title, model, words) for title, model in models.items()])
    manifest, _ = prepare(options(corpus, tmp_path / "ds", source=tmp_path / "dump"))
    assert (manifest.counts["pages"], manifest.counts["articles"]) == (5, 2)
    assert manifest.counts["pages dropped: not wikitext"] == 3


def test_a_dump_of_another_language_says_what_is_known_in_english_only(corpus: Path, tmp_path: Path) -> None:
    head = '<mediawiki xml:lang="de"><siteinfo><namespaces>{}{}</namespaces></siteinfo>'.format(
        '<namespace key="6" case="first-letter">Datei</namespace>',
        "".join(f'<namespace key="{100 + number}">{"x" * 200}</namespace>' for number in range(40)),  # beyond 4 KiB
    )
    text = "Sie lebt in [[City02]] am Fluss. [[Datei:Fluss|mini|Der [[City03]] bei Nacht und Nebel]]"
    pages = PAGE.format("Person01", 0, "", text) + PAGE.format("Datei:Fluss", 6, "", text)
    (tmp_path / "dump").write_text(f"{head}{pages}</mediawiki>")
    with warns("dump is in the language de: its namespaces are known, but .* by their English names only"):
        manifest, _ = prepare(options(corpus, tmp_path / "ds", source=tmp_path / "dump"))
    assert (manifest.counts["links found"], manifest.counts["mentions kept"]) == (1, 1)


def test_the_card_lists_the_templates_that_were_left_out(corpus: Path, tmp_path: Path) -> None:
    pages = []
    for number in range(30):
        notes = "".join(f"{{{{Note_{name}|x}}}}" for name in range(number, 30)) + "{{a|{{b}}}}" * 2
        pages.append(
            PAGE.format(f"Person{number:02}", 0, "", f"She lives in {{{{nowrap|[[City02]]}}}} for long.{notes}")
        )
    for name, chunk_mb in (("one", 1), ("many", 0.001)):
        (tmp_path / f"dump{name}").mkdir()
        (tmp_path / f"dump{name}" / "dump").write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
        out = tmp_path / name
        manifest, _ = prepare(options(corpus, out, source=tmp_path / f"dump{name}", chunk_mb=chunk_mb))
        assert manifest.counts["templates left out"] == 60 + 30 * 31 // 2
    card = (tmp_path / "one" / "README.md").read_text()
    assert card == (tmp_path / "many" / "README.md").read_text()
    rows = [line for line in card.partition("## Templates left out")[2].partition("##")[0].split("\n") if "|" in line][
        2:
    ]
    assert rows == ["| a | 60 |", *(f"| note {number} | {number + 1} |" for number in range(29, 10, -1))]
    assert "The most frequent of 31;" in card


def test_titles_prefer_labels_then_the_better_known_entity() -> None:
    graph = KnowledgeGraph.from_triples(np.array([[1, 1, 2], [2, 1, 3], [4, 1, 2]], dtype=np.int32))
    names = [(1, ["Mercury"]), (2, ["mercury"]), (3, ["Hermes", "Mercurius"]), (4, ["Quicksilver", "Hermes"])]
    titles = ["Mercury (planet)", "MERCURIUS", "Hermes", "Hg"]
    resolver = TitleResolver(titles, {"Hg": "Quicksilver"}, iter(names), graph)
    # Two are labelled "mercury"; one only is labelled "Hermes".
    assert [resolver.resolve(title) for title in titles] == [(2, AMBIGUOUS), (3, 0), (3, 0), (4, REDIRECTED)]


def test_word_starts_of_both_families(shared_data: Path, tmp_path: Path) -> None:
    roberta = load_tokenizer(shared_data / "tokenizers" / "roberta-base")
    starts = word_starts(roberta)
    ids = roberta("Anarchism, unbelievably", add_special_tokens=False)["input_ids"]
    assert [bool(starts[token]) for token in ids[1:]] == [
        token.startswith("Ġ") or not token[0].isalnum() for token in roberta.convert_ids_to_tokens(ids)[1:]
    ]
    text = "café’s “naïve” idea – well… “हिन्दी” 日本—x™ Łódź"
    tokens = np.array(roberta.tokenize(text), dtype=object)
    begun = starts[roberta.convert_tokens_to_ids(tokens.tolist())]
    words = ["".join(part) for part in np.split(tokens, np.flatnonzero(begun))]
    assert [roberta.backend_tokenizer.decoder.decode([word]).strip() for word in words] == [
        "café", "’s", "“naïve", "”", "idea", "–", "well", "…", "“हिन्दी", "”", "日本", "—x", "™", "Łódź"
    ]  # fmt: skip
    train_tokenizer(lambda: iter(["unbelievable believable belief"] * 3), 60, tmp_path / "t")
    wordpiece = load_tokenizer(tmp_path / "t")
    assert describe(wordpiece).vocab_size <= 60
    continued = [
        token.startswith("##") for token in wordpiece.convert_ids_to_tokens(np.arange(len(wordpiece)).tolist())
    ]
    assert any(continued)
    np.testing.assert_array_equal(word_starts(wordpiece), ~np.array(continued))


def test_missing_source(corpus: Path, tmp_path: Path) -> None:
    assert "nowhere does not exist" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "nowhere"))


def test_unknown_content(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("once upon a time")
    assert "neither a MediaWiki dump" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "x"))


def test_truncated_bz2(corpus: Path, tmp_path: Path) -> None:
    write_dump(tmp_path / "d", [PAGE.format(f"P{n}", 0, "", f"{n} words of an article " * 400) for n in range(900)])
    data = (tmp_path / "d").read_bytes()
    (tmp_path / "d").write_bytes(data[: len(data) // 2])
    message = refused(options(corpus, tmp_path / "ds", source=tmp_path / "d"))
    assert f"{tmp_path / 'd'}: damaged or truncated file" in message


def test_truncated_xml_and_other_xml(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "d").write_text("<mediawiki>" + PAGE.format("A", 0, "", "Some words of text here.") + "<page>")
    assert "ends within a page" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "d"))
    (tmp_path / "d").write_text("<?xml version='1.0'?><html><mediawiki/></html>")
    assert "its first element is <html>" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "d"))


def test_truncated_gzip(corpus: Path, tmp_path: Path) -> None:
    data = gzip.compress((corpus / "corpus.jsonl").read_bytes())
    (tmp_path / "c.gz").write_bytes(data[:-20])
    assert "damaged or truncated" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "c.gz"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "corpus.jsonl:61: not valid JSON"),
        ('{"words": "a"}', "corpus.jsonl:61: expected an object with a string 'text'"),
        (
            '{"text": "ab", "mentions": [{"qid": "Q1", "start": 1, "end": 3}]}',
            "corpus.jsonl:61: a mention needs 0 <= start",
        ),
        ('{"text": "ab", "mentions": [{"qid": "1", "start": 0, "end": 1}]}', "corpus.jsonl:61: a mention's 'qid'"),
        ('{"text": "a\\ud800"}', "corpus.jsonl:61: 'text' holds half a surrogate pair at character 1"),
        ("[" * 100_000, "corpus.jsonl:61: nested too deeply"),
        ('{"text": "ab", "mentions": [3]}', "corpus.jsonl:61: a mention must be an object"),
        ('{"text": "ab", "mentions": [{"qid": "Q1", "start": true, "end": 1}]}', "corpus.jsonl:61: a mention needs"),
    ],
)
def test_malformed_linked_lines(corpus: Path, tmp_path: Path, line: str, message: str) -> None:
    with (corpus / "corpus.jsonl").open("a") as stream:
        stream.write(line + "\n")
    assert message in refused(options(corpus, tmp_path / "ds"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Q1\tP551", "wikidata5m_all_triplet.txt:41: expected head<TAB>relation<TAB>tail, got 2 field(s)"),
        ("Q1\tP551\tcity", "wikidata5m_all_triplet.txt:41: expected an id such as Q42, got 'city'"),
        ("Q1\tQ551\tQ2", "wikidata5m_all_triplet.txt:41: expected an id such as P42, got 'Q551'"),
        ("Q1\tP551\tQ99999999999", "wikidata5m_all_triplet.txt:41: expected an id such as Q42"),
        ("\nQ1\tP551\tQ2", "wikidata5m_all_triplet.txt:41: expected head"),
    ],
)
def test_malformed_triples(corpus: Path, tmp_path: Path, line: str, message: str) -> None:
    with (corpus / "wikidata5m" / "wikidata5m_all_triplet.txt").open("a") as stream:
        stream.write(line + "\n")
    assert message in refused(options(corpus, tmp_path / "ds"))


def test_missing_graph_file(corpus: Path, tmp_path: Path) -> None:
    (corpus / "wikidata5m" / "wikidata5m_relation.txt").unlink()
    assert "lacks wikidata5m_relation.txt" in refused(options(corpus, tmp_path / "ds"))


def test_bad_tokenizers(corpus: Path, tmp_path: Path) -> None:
    assert "is not a folder" in refused(options(corpus, tmp_path / "ds", tokenizer="nowhere"))
    (tmp_path / "t").mkdir()
    assert "holds no vocab.txt" in refused(options(corpus, tmp_path / "ds", tokenizer=str(tmp_path / "t")))
    (tmp_path / "t" / "vocab.txt").write_text("a\nb\n[CLS]\n[SEP]\n[PAD]\n[MASK]\n")
    assert "vocab.txt lacks [UNK]" in refused(options(corpus, tmp_path / "ds", tokenizer=str(tmp_path / "t")))


def test_out_that_is_no_dataset_stays_untouched(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "is no dataset" in refused(options(corpus, tmp_path / "mine"))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_odd_sources(corpus: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is neither a file nor a folder" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "pipe"))
    folder = tmp_path / "in here"
    (folder / "below").mkdir(parents=True)
    shutil.copy(corpus / "corpus.jsonl", folder / "ä b|c.jsonl")
    (folder / "gone").symlink_to("nowhere")
    (folder / ".ds.lock").touch()  # as a killed run leaves it when --out lies in the source folder
    with warns("skipping") as warned:
        manifest, _ = prepare(options(corpus, tmp_path / "ds", source=folder))
    assert manifest is not None
    assert manifest.n_sequences == 60
    assert {message.split("/")[-1] for message in warned} == {
        "below, which is a folder",
        "gone, which is a broken link",
    }
    assert "ä b\\|c.jsonl" in (tmp_path / "ds" / "README.md").read_text()


def test_the_tokenizers_rules_are_part_of_the_request(corpus: Path, tmp_path: Path) -> None:
    prepare(options(corpus, tmp_path / "made"))
    for name, lower in (("a", True), ("b", False)):
        shutil.copytree(tmp_path / "made" / "tokenizer", tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer.json").read_text())
        config["normalizer"]["lowercase"] = lower
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(config))
        about = json.loads((tmp_path / name / "tokenizer_config.json").read_text()) | {"do_lower_case": lower}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(about))
    prepare(options(corpus, tmp_path / "ds", tokenizer=str(tmp_path / "a")))
    with pytest.raises(UserError, match="another request \\(tokenizer\\)"):
        prepare(options(corpus, tmp_path / "ds", tokenizer=str(tmp_path / "b")))


def test_a_repaired_dataset_is_not_taken_for_a_whole_one(corpus: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "more", documents=600)
    asked = options(tmp_path / "more", tmp_path / "ds")
    manifest, _ = prepare(asked)
    assert manifest is not None
    path = tmp_path / "ds" / manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[manifest.shards[0].blocks[1][0] + 1500] ^= 1
    path.write_bytes(data)
    repair(tmp_path / "ds")
    with pytest.raises(UserError, match="lacks 256 sequences since `verify --repair`; remove it to make it again"):
        prepare(asked)
    assert "256 sequences were dropped, 344 are left" in (tmp_path / "ds" / "README.md").read_text()
    assert verify(tmp_path / "ds")[1] == []


def test_an_empty_corpus(corpus: Path, tmp_path: Path) -> None:
    write_dump(tmp_path / "d", [PAGE.format("A", 0, '<redirect title="B" />', "")])
    assert "holds no text" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "d"))


def test_a_byte_order_mark_is_no_mistake(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare(options(corpus, tmp_path / "ds"))[0].n_sequences == 60


def test_text_without_a_token(corpus: Path, tmp_path: Path) -> None:
    (corpus / "corpus.jsonl").write_text('{"text": " \\u0000 "}\n')
    assert "holds no text that the tokenizer knows" in refused(options(corpus, tmp_path / "ds"))


def test_mixed_sources(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    shutil.copy(corpus / "corpus.jsonl", tmp_path / "mixed" / "a")
    write_dump(tmp_path / "mixed" / "b", [])
    assert "prepare them one after the other" in refused(options(corpus, tmp_path / "ds", source=tmp_path / "mixed"))


@pytest.mark.slow
def test_the_real_excerpt(shared_data: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(
        PrepareOptions(
            shared_data / "wikipedia",
            shared_data / "wikidata5m",
            str(shared_data / "tokenizers" / "bert-base-uncased"),
            tmp_path / "ds",
        )
    )
    counts = manifest.counts
    assert counts["articles"] + sum(counts.get(f"pages dropped: {why}", 0) for why in DROPPED) == 106
    assert counts["mentions found"] == counts["mentions mapped"] + counts["mentions without an entity"]
    assert counts["mentions mapped"] > 8000
    assert Manifest.load(tmp_path / "ds").n_sequences > 1000
