"""Reader of MediaWiki's `page_props` table (an SQL dump), which maps page ids to QIDs."""

from __future__ import annotations

import re
from pathlib import Path

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import DAMAGED, open_binary
from trelm_ds.progress import ProgressBar

# Quotes inside SQL strings are escaped, so this cannot match in the middle of one.
_ROW = re.compile(rb"\(([0-9]{1,12}),'wikibase_item','Q([0-9]{1,9})'")
_LONGEST_ROW = 64
_PIECE = 1 << 22  # bytes read at a time
_TRAILER = 200  # bytes at the end in which "Dump completed" is expected


def read_page_props(path: Path, wanted: set[int]) -> dict[int, int]:
    """Map the wanted page ids to QID numbers; pages without a QID are missing from the result.

    Args:
        path: `*-page_props.sql`, plain or compressed.
        wanted: page ids.

    Raises:
        UserError: the file is damaged or has no `wikibase_item` row.
    """
    found: dict[int, int] = {}
    rows, rest, data = 0, b"", b""
    try:
        with open_binary(path) as stream, ProgressBar("reading page_props", None) as bar:
            while piece := stream.read(_PIECE):
                data = rest + piece
                last = 0
                for match in _ROW.finditer(data):
                    rows += 1
                    last = match.end()
                    page = int(match.group(1))
                    if page in wanted:
                        found[page] = int(match.group(2))
                rest = data[max(last, len(data) - _LONGEST_ROW) :]  # may hold the start of a row, but no matched one
                bar.advance(len(piece))
    except DAMAGED as error:
        raise UserError(f"--page-props: {path}: damaged or truncated file ({error}); fetch it again") from None
    if b"Dump completed" not in data[-_TRAILER:] + rest[-_TRAILER:]:
        log.warning(f'--page-props: {path} does not end with "Dump completed"; is it cut off?')
    if wanted and len(found) * 2 < len(wanted):
        share = f"{len(found):,} of {len(wanted):,}"
        log.warning(f"--page-props: {path} has only {share} linked pages; does it belong to this dump?")
    if not rows:
        raise UserError(f"--page-props: {path} holds no wikibase_item row; give the dump's *-page_props.sql.gz")
    return found
