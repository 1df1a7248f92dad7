"""Keep passwords out of everything that is printed or written."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_HIDDEN = "..."
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRET_WORDS = "password|passwd|pwd|secret|token|key|auth|credential|signature|sig|jwt|bearer|session"
# Options of database drivers that are no secrets. Of a tracking address nothing else in the query is shown.
_PLAIN = (
    "application_name",
    "cache",
    "charset",
    "connect_timeout",
    "driver",
    "mode",
    "ssl",
    "sslmode",
    "timeout",
    "uri",
)


def without_password(text: str) -> str:
    """Remove user and password, and secrets in query strings, from every URL in a text."""
    text = re.sub(rf"(?i)([?&;#][\w-]*(?:{_SECRET_WORDS})[\w-]*=)[^&;\s'\"]+", rf"\1{_HIDDEN}", text)
    # Match up to the last @, because an unquoted password may contain @ and / itself.
    return re.sub(r"(\w://)[^\s'\"]*@", rf"\1{_HIDDEN}@", text)


def shown(address: str) -> str:
    """Remove user, password and query from an address, however malformed: everything before the last @ is dropped."""
    before, at, rest = address.rpartition("@")
    scheme = re.match(r"([\w+.-]+:/+)?", before)
    assert scheme
    if re.search(r"\?.*=", before):  # the @ may be in a token, and what is behind it as well
        return f"{scheme.group()}{_HIDDEN}"
    place, options = _split(f"{scheme.group()}{_HIDDEN}@{rest}" if at else address)
    for option in options:
        name, equals, _ = option[1:].partition("=")
        place += option if name in _PLAIN else f"{option[0]}{name}={_HIDDEN}" if equals else f"{option[0]}{_HIDDEN}"
    return place


def is_incomplete(address: str) -> bool:
    """Return whether `shown` has left something out of an address."""
    return re.search(r"(^|:/+|[?&;#=])\.\.\.", address) is not None


def _split(address: str) -> tuple[str, list[str]]:
    """Split an address at its query, and that into options with their leading character."""
    # Before anything but a server's address, # is part of a file's name.
    begin = re.search(r"[?#]" if address.startswith("http") else r"\?", address)
    place = address[: begin.start()] if begin else address
    return place, re.findall(r"[?&;#][^?&;#]*", address[len(place) :])


def scrub(text: str, address: str) -> str:
    """Remove the password of `address` from a message, in whatever form a library repeats it."""
    text = text.replace(address, shown(address))
    for secret in secrets_of(address):
        text = text.replace(secret, _HIDDEN)
    return without_password(text)


def secrets_of(address: str) -> list[str]:
    """Collect the secrets in an address, as written and unquoted, and MLflow's from the environment."""
    before = re.sub(r"^[\w+.-]+:/+", "", address.rpartition("@")[0])
    user, _, password = before.partition(":")
    options = [option[1:].partition("=") for option in _split(address)[1]]
    written = [password or user, *(value or name for name, _, value in options if name not in _PLAIN)]
    secrets = written + [unquote(secret) for secret in written]
    secrets += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    # One or two characters occur in any message by chance. The longest first: one secret may contain another.
    return sorted({secret for secret in secrets if len(secret) > 2}, key=len, reverse=True)
