"""Articles as a MediaWiki export, with the markup found in real dumps."""

from __future__ import annotations

import random
from xml.sax.saxutils import escape, quoteattr

from corpus import Article

EXPORT = "http://www.mediawiki.org/xml/export-0.10/"
TIMESTAMP = "2024-01-01T00:00:00Z"  # fixed, so that equal seeds give equal bytes
NAMESPACES = {-2: "Media", -1: "Special", 0: "", 1: "Talk", 4: "Project", 6: "File", 10: "Template", 12: "Help"}
HELP_TEXT = "This page is not an article: a reader of the dump has to skip it. See [[Help:Contents]]."


def render_export(articles: list[Article], seed: int) -> str:
    """Render the whole export as one XML string."""
    rng = random.Random(f"markup-{seed}")
    parts = [header(), page(1, 12, "Help:About this wiki", HELP_TEXT)]
    number = 2
    for article in articles:
        parts.append(page(number, 0, article.title, article_text(article, rng)))
        number += 1
        for alias in article.entity.aliases if article.entity else ():
            title = alias[0].upper() + alias[1:]
            parts.append(page(number, 0, title, f"#REDIRECT [[{article.title}]]", article.title))
            number += 1
    return "".join(parts) + "</mediawiki>\n"


def header() -> str:
    """Render the opening tag and the site information."""
    namespaces = "".join(
        f'      <namespace key="{key}" case="first-letter">{name}</namespace>\n' for key, name in NAMESPACES.items()
    )
    return (
        f'<mediawiki xmlns="{EXPORT}" version="0.10" xml:lang="en">\n'
        "  <siteinfo>\n    <sitename>Sample world</sitename>\n    <dbname>sampleworld</dbname>\n"
        f"    <case>first-letter</case>\n    <namespaces>\n{namespaces}    </namespaces>\n  </siteinfo>\n"
    )


def page(number: int, namespace: int, title: str, text: str, redirect: str | None = None) -> str:
    """Render one <page> element."""
    target = f"    <redirect title={quoteattr(redirect)} />\n" if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n{target}"
        f"    <revision>\n      <id>{number}</id>\n      <timestamp>{TIMESTAMP}</timestamp>\n"
        "      <contributor>\n        <username>Sample</username>\n        <id>1</id>\n      </contributor>\n"
        "      <model>wikitext</model>\n      <format>text/x-wiki</format>\n"
        f'      <text xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


def article_text(article: Article, rng: random.Random) -> str:
    """Render an article's wikitext: a bold lead and one section, or plain paragraphs for an almanac page."""
    sentences = [with_reference(sentence.wikitext, rng) for sentence in article.sentences]
    if article.entity is None:
        half = len(sentences) // 2
        first, second = " ".join(sentences[:half]), " ".join(sentences[half:])
        lead = f"{{{{Almanac|edition=1}}}}\n'''{article.title}''' collects short notes."
        sections = f"\n\n== First part ==\n{first}\n\n== Second part ==\n{second}"
        return f"{lead}{sections}\n\n[[Category:Almanac pages]]"
    kind = article.entity.type
    lead = bold_link(sentences[0])
    body = "\n\n== Description ==\n" + " ".join(sentences[1:]) if len(sentences) > 1 else ""
    infobox = "{{Infobox " + kind + "\n| name = " + article.title + "\n| image = \n}}\n" if rng.random() < 0.3 else ""
    return "{{Short description|" + kind + "}}\n" + infobox + lead + body + f"\n\n[[Category:Entries of type {kind}]]"


def bold_link(sentence: str) -> str:
    """Set the first link of a sentence in bold, as an article does with its own title."""
    start, end = sentence.index("[["), sentence.index("]]") + 2
    return f"{sentence[:start]}'''{sentence[start:end]}'''{sentence[end:]}"


def with_reference(sentence: str, rng: random.Random) -> str:
    """Add a footnote or a comment to some sentences."""
    draw = rng.random()
    if draw < 0.05:
        return f"{sentence}<ref>{{{{Cite book|title=Sample atlas|page={rng.randrange(1, 300)}}}}}</ref>"
    if draw < 0.08:
        return f'{sentence}<ref name="atlas" />'
    return f"{sentence}<!-- checked -->" if draw < 0.09 else sentence
