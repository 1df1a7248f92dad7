"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user handed us: a setting, a file, a line.

    The message is one line that names the place and says what to do. The command line prints it without a traceback
    and exits with code 2; every other exception is a bug of ours and keeps its traceback.
    """


class RankError(UserError):
    """A mistake that one rank alone has met, so that this rank has to report it."""


class CommonError(UserError):
    """A mistake that all ranks know of, so that the first one reports it for all."""
