"""The --out option of commands that write a JSON file and a plot next to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trelm_ds.errors import UserError


def check_result_file(out: Path | None, example: str) -> None:
    """Check that a JSON file and a plot can be written to --out.

    Args:
        out: the option's value; None skips the check.
        example: file name to suggest in the message.

    Raises:
        UserError: the path is unsuitable or its folder cannot be written.
    """
    if out is None:
        return
    if out.suffix in ("", ".png") or not out.resolve().parent.is_dir():
        raise UserError(f"--out: give a file such as {example} in an existing folder, not {out}")
    try:  # fail before the work, not after it
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            pass
    except OSError as error:
        raise UserError(f"--out: {out.resolve().parent} cannot be written: {error.strerror}") from None
    for path in (out, out.with_suffix(".png")):
        if path.is_dir():
            raise UserError(f"--out: {path} is a folder")
