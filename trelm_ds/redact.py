"""Keep passwords out of everything that is printed or written."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_HIDDEN = "..."
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def without_password(text: str) -> str:
    """Remove user and password, and secrets in query strings, from every URL in a text."""
    # Match up to the last @, because an unquoted password may contain @ and / itself.
    text = re.sub(r"(\w://)[^\s'\"]*@", rf"\1{_HIDDEN}@", text)
    return re.sub(r"(?i)([?&][\w-]*(?:password|passwd|pwd|secret|token|key)=)[^&\s'\"]+", rf"\1{_HIDDEN}", text)


def shown(address: str) -> str:
    """Remove user and password from an address, however malformed: everything before the last @ is dropped."""
    before, at, rest = address.rpartition("@")
    scheme = re.match(r"[\w+.-]+:/+|", before)
    return without_password(f"{scheme and scheme.group()}{_HIDDEN}@{rest}" if at else address)


def scrub(text: str, address: str) -> str:
    """Remove the password of `address` from a message, in whatever form a library repeats it."""
    text = text.replace(address, shown(address))
    for secret in secrets_of(address):
        text = text.replace(secret, _HIDDEN)
    return without_password(text)


def secrets_of(address: str) -> list[str]:
    """Collect the password or token in an address, as written and unquoted, and MLflow's from the environment."""
    before = re.sub(r"^[\w+.-]+:/+", "", address.rpartition("@")[0])
    user, _, password = before.partition(":")
    secrets = [password or user, unquote(password or user)]
    secrets += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    # One or two characters occur in any message by chance. The longest first: one secret may contain another.
    return sorted({secret for secret in secrets if len(secret) > 2}, key=len, reverse=True)
