"""Errors that a user can fix."""

from __future__ import annotations

import errno
from pathlib import Path

MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO)


class UserError(ValueError):
    """A mistake in the user's input: a setting, a file, a line.

    The message is one line that names the place and says what to do. The command line prints it without a traceback
    and exits with code 2; any other exception is a bug in this program and keeps its traceback.

    Attributes:
        passes: whether another start may help, as when a file server restarts; the exit code is 1 then, so that batch
            systems start the job again.
        reported: whether it stands in the log already.
    """

    passes = False
    reported = False

    @classmethod
    def because(cls, message: str, error: OSError) -> UserError:
        """Return an error with this message that passes if its cause does."""
        made = cls(message)
        made.passes = error.errno in MAY_PASS
        return made


class RankError(UserError):
    """A mistake that only one rank has found, so that this rank must report it."""


class CommonError(UserError):
    """A mistake that all ranks know of, so that rank 0 reports it for all."""


class UnreadableError(UserError):
    """A file that cannot be read: it is missing, may not be read, or its file server is away.

    Args:
        path: the file.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: cannot be read: {error.strerror or error}")
        self.passes = error.errno in MAY_PASS
        # Only of a file that is gone, or of a disk that fails, does it follow that the content is lost.
        self.lost = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO)
