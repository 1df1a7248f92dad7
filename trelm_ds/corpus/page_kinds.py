"""Kinds of pages that are no articles: lists of the meanings of a title, and lists of links."""

from __future__ import annotations

import re

from trelm_ds.corpus.markup import without_comments

# Message boxes of English Wikipedia for disambiguation pages and set indices, with their redirects; names without
# blanks and hyphens, because redirects differ by them ("Ship index", "Shipindex", "Geo-dis").
_MEANINGS = frozenset(re.findall(r"\S+", """
    disambiguation disambig disamb disam dab dbig dis dmbox disambiguationpage disambiguationcleanup disambigcleanup
    disambigname disambignm disambign disambigg disambiggeo disambigmisspelling disambiguationname disamb2 disamb3
    disamb4 disambterm disambterms begriffsklärung
    hndis hndab hndisambig humannamedisambiguation humannamedisambiguationcleanup humannamedab hndiscleanup namedab
    personalnamedisambiguation
    geodis geodab geodisambig placenamedisambiguation
    numberdis numberdisambiguation numdis numdab numdisambig
    mathdab mathdis mathdisambig mathematicaldisambiguation mathematicsdisambiguation
    roaddis roaddab roaddisambig roaddisambiguation
    schooldis schooldab schooldisambig schooldisambiguation
    hospitaldis hospitaldab hospitaldisambig hospitaldisambiguation
    stationdis stationdab stationdisambig stationdisambiguation
    airportdis airportdab airportdisambig airportdisambiguation
    callsigndis callsigndab callsigndisambig callsigndisambiguation
    churchdab churchdisambig churchdisambiguation synagoguedab synagoguedisambiguation
    milunitdis milunitdisambig militaryunitdisambiguation
    biodab biodisambig biologydisambiguation genusdis genusdab genusdisambig genusdisambiguation
    taxonomydisambiguation taxonomydab taxonomicauthoritydisambiguation taxonomicauthoritiesdisambiguation
    speciesdisambiguation latinnamedisambig latinnamedisambiguation specieslatinnamedisambig
    specieslatinnamedisambiguation specieslatinnameabbreviationdisambiguation disambigplants
    chemdisambig chemistrydisambiguation molformdisambig molecularformuladisambiguation
    caselawdisambiguation caselawdisambig caselawdab portaldisambig portaldisambiguation
    chinesetitledisambig chinesetitledisambiguation disambigchinesechartitle cjkvdab
    letternumbercombdisambig letternumbercombinationdisambiguation lncd lnd tladisambig
    phoneticsdisambiguation musicdisambig musicdisambiguation opusnumberdisambiguation woonumberdisambiguation
    wikipediadisambiguation templatedisambig templatedisambiguation shortcutdisambig projectdisambiguation
    setindex setindexarticle sia shipindex roadindex mountainindex lakeindex riverindex sportindex stormindex
    chemistryindex chemistrysetindex molformindex molecularformulaindex enzymeindex locomotiveindex mediaindex
    mediasetindex plantcommonname animalcommonname funguscommonname
    surname surnames givenname givennames forename firstname nickname
"""))  # fmt: skip
_SQUEEZED = str.maketrans("", "", " -_–")
# Possessive, because backtracking over thousands of spaces without a closing brace takes quadratic time.
_TEMPLATE_NAME = re.compile(r"\{\{\s*+(?:[Tt]emplate\s*+:\s*+)?([\w-][\w –-]{0,59}?)\s*+(?=\||\}\})")
_INDEX = re.compile(r"\b(?:articles|topics|pages)\b", re.IGNORECASE)
_NAVIGATION = re.compile(
    r"\btopical guide to\b|\{\{\s*+(?:outline|index)[ _](?:header|footer)\b"
    r"|\[\[\s*+category\s*+:\s*+(?:wikipedia[ _])?(?:outlines|indexes of)\b",
    re.IGNORECASE,
)


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Tell whether a page only lists the possible meanings of its title."""
    if title.endswith("(disambiguation)") or "__DISAMBIG__" in wikitext:
        return True
    names = (match.group(1) for match in _TEMPLATE_NAME.finditer(without_comments(wikitext)))
    return any(name.translate(_SQUEEZED).lower() in _MEANINGS for name in names)


def is_list(title: str, wikitext: str) -> bool:
    """Tell whether a page is a list of links; "Index of" and "Outline of" also begin the titles of works and ideas."""
    if title.startswith(("List of ", "Lists of ")):
        return True
    if title.startswith("Index of ") and _INDEX.search(title):
        return True
    return title.startswith(("Index of ", "Outline of ")) and _NAVIGATION.search(wikitext) is not None
