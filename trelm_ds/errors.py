"""Errors that a user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input: a setting, a file, a line.

    The message is one line that names the place and says what to do. The command line prints it without a traceback
    and exits with code 2; any other exception is a bug in this program and keeps its traceback.
    """


class RankError(UserError):
    """A mistake that only one rank has found, so that this rank must report it."""


class CommonError(UserError):
    """A mistake that all ranks know of, so that rank 0 reports it for all."""
