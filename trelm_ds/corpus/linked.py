"""Linked JSONL: one document a line, `{"text": ..., "mentions": [{"qid": "Q42", "start": 0, "end": 5}, ...]}`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.errors import UserError
from trelm_ds.files import read_lines


def read_linked(path: Path, counts: Counter[str]) -> Iterator[Document]:
    """Yields the documents of a linked JSONL file, plain or compressed, and counts documents and mentions.

    Raises:
        UserError: a line that is not such an object; names file, line and field.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
        except ValueError as error:  # an integer of thousands of digits
            raise UserError(f"{place}: not valid JSON: {error}") from None
        except RecursionError:
            raise UserError(f"{place}: nested too deeply") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{place}: expected an object with a string 'text'")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 cannot
            raise UserError(f"{place}: 'text' holds half a surrogate pair at character {error.start}") from None
        mentions = record.get("mentions", [])
        if not isinstance(mentions, list):
            raise UserError(f"{place}: 'mentions' must be a list")
        counts["documents"] += 1
        counts["mentions found"] += len(mentions)
        yield Document(text, sorted((_mention(item, text, place) for item in mentions), key=lambda m: m[:2]))


def _mention(item: object, text: str, place: str) -> Mention:
    if not isinstance(item, dict):
        raise UserError(f"{place}: a mention must be an object with qid, start, end")
    qid, start, end = item.get("qid"), item.get("start"), item.get("end")
    if not (isinstance(qid, str) and qid[:1] == "Q" and qid[1:].isdecimal() and qid.isascii() and len(qid) <= 10):
        raise UserError(f"{place}: a mention's 'qid' must look like \"Q42\", got {qid!r}")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise UserError(f"{place}: a mention needs 0 <= start < end <= {len(text)}, got start={start!r} end={end!r}")
    return Mention(start, end, int(qid[1:]))
