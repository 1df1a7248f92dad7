"""A wiki's names: what <siteinfo> says, what links show, and how titles are written."""

from __future__ import annotations

import pytest

from trelm_ds.corpus.site import ENGLISH, read_site

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{}">
<siteinfo><sitename>Wikipedia</sitename><case>first-letter</case><namespaces>{}</namespaces></siteinfo>"""
GERMAN = HEAD.format(
    "de",
    '<namespace key="-2" case="first-letter">Medium</namespace><namespace key="0" case="first-letter" />'
    '<namespace key="2" case="first-letter">Benutzer</namespace>'
    '<namespace key="3" case="first-letter">Benutzer Diskussion</namespace>'
    '<namespace key="6" case="first-letter">Datei</namespace>'
    '<namespace key="14" case="first-letter">Kategorie</namespace>',
)


def test_siteinfo_names_the_namespaces() -> None:
    site = read_site(GERMAN)
    assert (site.language, site.is_english, site.first_letter) == ("de", False, True)
    kinds = {
        name: site.link_kind(f"{name}:Rhein")
        for name in ("Datei", "datei", "Kategorie", "Medium", "Benutzer_Diskussion")
    }
    assert kinds == {
        "Datei": "hidden", "datei": "hidden", "Kategorie": "hidden", "Medium": "shown", "Benutzer_Diskussion": "shown",
    }  # fmt: skip
    assert site.link_kind("File:Rhein") == "hidden"  # the English names work everywhere
    assert ENGLISH.link_kind("Datei:Rhein") == "article"


def test_names_in_any_script() -> None:
    names = {6: "चित्र", 14: "श्रेणी", 2: "सदस्य"}
    site = read_site(
        HEAD.format("hi", "".join(f'<namespace key="{key}">{name}</namespace>' for key, name in names.items()))
    )
    assert [site.link_kind(f"{name}:गंगा") for name in names.values()] == ["hidden", "hidden", "shown"]


def test_a_wiktionary_keeps_small_letters() -> None:
    site = read_site(HEAD.format("en", '<namespace key="0" case="case-sensitive" />'))
    assert (site.title("gift"), ENGLISH.title("gift")) == ("gift", "Gift")


def test_without_siteinfo_a_wiki_is_english() -> None:
    assert read_site("<mediawiki>") == ENGLISH


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("Paris", "article"), ("Alien: Covenant", "article"), ("2001: A Space Odyssey", "article"),
        (":Paris", "article"), ("Category:Rivers", "hidden"), ("category : Rivers", "hidden"),
        (":Category:Rivers", "shown"),
        ("File:A.jpg", "hidden"), ("Image:A", "hidden"), (":File:A.jpg", "shown"), ("Media:A.ogg", "shown"),
        ("Bild:Alt.JPG", "hidden"), ("Fichier:Lac.svg", "hidden"), ("de:Fluss", "hidden"), (":de:Fluss", "shown"),
        ("zh-min-nan:X", "hidden"), ("simple:X", "hidden"), ("wikt:word", "shown"), ("s:Work", "shown"),
        ("WP:NPOV", "shown"), ("voy:Paris", "shown"), ("Help:Contents", "shown"), ("User talk:A", "shown"),
        ("Template:X", "shown"),
        ("Special:Random", "shown"), ("commons:Category:X", "shown"), ("It: Chapter Two", "article"),
    ],
)  # fmt: skip
def test_what_a_link_shows(target: str, kind: str) -> None:
    assert ENGLISH.link_kind(target) == kind


@pytest.mark.parametrize(
    "written",
    [
        "New York", "new York", " New_York ", "New  York", "New&nbsp;York", "New&#32;York",
        "New%20York", "New York#History", "New\u00a0York", "\u200eNew York\u200f", ":New York",
        "New York&#35;x", "New York%23x", "__New_York",
    ],
)  # fmt: skip
def test_spellings_of_one_title(written: str) -> None:
    assert ENGLISH.title(written) == "New York"


def test_titles_that_are_none_and_signs_that_stay() -> None:
    assert ENGLISH.title("AT&amp;T") == ENGLISH.title("AT&T") == "AT&T"
    assert ENGLISH.title("100% sure") == "100% sure"
    assert ENGLISH.title("Caf%C3%A9") == ENGLISH.title("Cafe\u0301") == "Café"
    assert ENGLISH.title("ßuss") == "ßuss"
    assert [ENGLISH.title(text) for text in ("{{PAGENAME}}", "a|b", "<b>a</b>", "#here", "&#x110000;")] == [""] * 5
