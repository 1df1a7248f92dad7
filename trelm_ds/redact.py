"""Keeps passwords out of whatever is printed or written."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_HIDDEN = "..."
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def without_password(text: str) -> str:
    """The text with user and password taken out of every address in it, and secrets out of its query."""
    # Up to the last @: an unquoted password may hold @ and / itself.
    text = re.sub(r"(\w://)[^\s'\"]*@", rf"\1{_HIDDEN}@", text)
    return re.sub(r"(?i)([?&][\w-]*(?:password|passwd|pwd|secret|token|key)=)[^&\s'\"]+", rf"\1{_HIDDEN}", text)


def shown(address: str) -> str:
    """An address without user and password, malformed ones too: whatever stands before the last @ is left out."""
    before, at, rest = address.rpartition("@")
    scheme = re.match(r"[\w+.-]+:/+|", before)
    return without_password(f"{scheme and scheme.group()}{_HIDDEN}@{rest}" if at else address)


def scrub(text: str, address: str) -> str:
    """A message about `address` without its password, in whatever form a library repeats it."""
    text = text.replace(address, shown(address))
    for secret in secrets_of(address):
        text = text.replace(secret, _HIDDEN)
    return without_password(text)


def secrets_of(address: str) -> list[str]:
    """The password (or token) in an address, as it stands there and as it is meant, and MLflow's of the environment."""
    before = re.sub(r"^[\w+.-]+:/+", "", address.rpartition("@")[0])
    user, _, password = before.partition(":")
    secrets = [password or user, unquote(password or user)]
    secrets += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    # One or two letters occur in every message.
    return sorted({secret for secret in secrets if len(secret) > 2}, key=len, reverse=True)
