"""Count what becomes of the text of a dump: mentions, templates left out by name, words that are glued.

python tools/bench/wikitext.py --excerpt DUMP --words LINKED_JSONL [--checkout DIR] [--label NAME]

A word counts as glued if the page's wikitext, without the ends of links and quotes, does not hold it, nor does the word
list, which is the text of the linked JSONL. Words are runs of letters or of digits. `--checkout` measures another
(older) checkout of this project. Prints a row of the table in docs/preparation.md, then templates and glued words.
"""

from __future__ import annotations

import argparse
import datetime
import html
import json
import re
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_WORD = re.compile(r"[^\W\d_]+|\d+")
_JOINTS = re.compile(r"\]\]|'{2,}")
_PAGE = re.compile(rb"<page>.*?</page>", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--excerpt", type=Path, required=True, help="MediaWiki dump of a few MB")
    parser.add_argument("--words", type=Path, required=True, help="linked JSONL, whose text is the word list")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the project to measure")
    parser.add_argument("--label", default="now")
    options = parser.parse_args()
    sys.path.insert(0, str(options.checkout.resolve()))
    from trelm_ds.files import open_binary

    with open_binary(options.words) as stream:
        known = {word.lower() for line in stream for word in _WORD.findall(json.loads(line)["text"])}
    with open_binary(options.excerpt) as stream:
        pages = _PAGE.findall(stream.read())
    row, left_out, glued = measure(pages, known)
    print(
        "| code | articles | words | links found | subjects found | templates spelled out | left out | glued | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(f"| {options.label} | " + " | ".join(f"{value:,}" for value in row) + " |")
    print("left out:", ", ".join(f"{name} {times}" for name, times in left_out.most_common(20)))
    print("glued:", ", ".join(f"{word} {times}" for word, times in glued.most_common(60)))
    print(f"mwparserfromhell {version('mwparserfromhell')}; {datetime.date.today().isoformat()}")


def measure(pages: list[bytes], known: set[str]) -> tuple[list[float], Counter[str], Counter[str]]:
    """Return the row of the table, the templates left out, and the glued words."""
    from trelm_ds.corpus import wikipedia, wikitext

    left_out, glued, counts = Counter[str](), Counter[str](), Counter[str]()
    spelled = words = 0
    visible_part = wikitext.visible_part

    def counted(template: Any, *arguments: Any) -> Any:
        nonlocal spelled
        part = visible_part(template, *arguments)
        if part:
            spelled += 1
        else:
            left_out[" ".join(str(template.name).split()).lower()[:60]] += 1
        return part

    wikitext.visible_part = counted  # type: ignore[assignment]
    seconds = 0.0
    for data in pages:
        before = time.process_time()
        page = wikipedia.parse_page(data)
        article = wikipedia.article_of(page, 1, counts) if page and not page.redirect else None
        seconds += time.process_time() - before
        if page is None or article is None:
            continue
        bare = _JOINTS.sub("", html.unescape(page.text))  # [[bus]]es is one word
        source = {word.lower() for word in _WORD.findall(bare)}
        found = [word for word in _WORD.findall(article.text) if word.isalpha() or word.isdecimal()]
        words += len(found)
        glued.update(word for word in found if word.lower() not in source and word.lower() not in known)
    numbers = [counts["articles"], words, counts["links found"], counts["subjects found"], spelled, left_out.total()]
    return [*numbers, glued.total(), round(seconds, 2)], left_out, glued


if __name__ == "__main__":
    main()
