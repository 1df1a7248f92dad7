"""Linked JSONL: one document per line, `{"text": ..., "mentions": [{"qid": "Q42", "start": 0, "end": 5}, ...]}`."""

from __future__ import annotations

import json

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_linked(line: bytes) -> Document:
    """Parse one line; mentions are sorted by start.

    Raises:
        UserError: the line is not such an object; names the field.
    """
    try:
        record = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not valid UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise UserError("nested too deeply") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError("expected an object with a string 'text'")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can express half a surrogate pair, UTF-8 cannot
        raise UserError(f"'text' holds half a surrogate pair at character {error.start}") from None
    mentions = record.get("mentions", [])
    if not isinstance(mentions, list):
        raise UserError("'mentions' must be a list")
    return Document(text, sorted((_mention(item, text) for item in mentions), key=lambda m: m[:2]))


def _mention(item: object, text: str) -> Mention:
    if not isinstance(item, dict):
        raise UserError("a mention must be an object with qid, start, end")
    qid, start, end = item.get("qid"), item.get("start"), item.get("end")
    if not (isinstance(qid, str) and qid[:1] == "Q" and qid[1:].isdecimal() and qid.isascii() and len(qid) <= 10):
        raise UserError(f"a mention's 'qid' must look like \"Q42\", got {qid!r}")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise UserError(f"a mention needs 0 <= start < end <= {len(text)}, got start={start!r} end={end!r}")
    return Mention(start, end, int(qid[1:]))
