from __future__ import annotations

import pytest

from trelm_ds.config import Config, TrackingConfig, public, to_yaml
from trelm_ds.redact import is_incomplete, scrub, shown, without_password


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://h:5000/x", "http://h:5000/x"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://user:geheim@h:5000/x", "http://...@h:5000/x"),
        ("https://geheim@h", "https://...@h"),
        ("http://u:ge@h/eim@h", "http://...@h"),
        ("postgresql+psycopg2://u:p%40geheim@h/db", "postgresql+psycopg2://...@h/db"),
        ("mysql://h/db?user=u&password=geheim&ssl=1", "mysql://h/db?user=u&password=...&ssl=1"),
        ("http://h/?access_token=ge@heim", "http://h/?access_token=..."),
        ("http://h/?a=1;auth=geheim", "http://h/?a=1;auth=..."),
        ("https://h/x?X-Amz-Signature=geheim#f", "https://h/x?X-Amz-Signature=..."),
    ],
)
def test_addresses_lose_user_and_password(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert without_password(shown) == shown
    assert without_password(f"cannot reach '{address}' today") == f"cannot reach '{shown}' today"


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("user:geheim@h:9", "...@h:9"),
        ("http:/user:geheim@h", "http:/...@h"),
        ("http://user:ge h'ei\"m@h", "http://...@h"),
        ("http://h:5000", "http://h:5000"),
        ("http://h:5000/?geheim", "http://h:5000/?..."),
        ("http://h:5000/?t%6Fken=geheim&x=y", "http://h:5000/?t%6Fken=...&x=..."),
        ("http://h:5000/#access=geheim", "http://h:5000/#access=..."),
        ("http://h:5000/?token=ge@heim", "http://..."),
        ("postgresql://u:geheim@h/db?sslmode=require", "postgresql://...@h/db?sslmode=require"),
        ("sqlite:////data/#1/mlflow.db?timeout=5", "sqlite:////data/#1/mlflow.db?timeout=5"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_malformed_addresses_too(address: str, seen: str) -> None:
    assert shown(address) == seen
    assert shown(seen) == seen
    assert scrub(f"cannot reach {address} today", address) == f"cannot reach {seen} today"
    assert public(Config(tracking=TrackingConfig(uri=address))).tracking.uri == seen
    assert is_incomplete(seen) == (seen != address)


def test_messages_lose_the_password_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-en")
    message = "no user u with p@geheim (p%40geheim) at postgresql://u:p%40geheim@h/db, tok-en"
    assert scrub(message, "postgresql://u:p%40geheim@h/db") == "no user u with ... (...) at postgresql://...@h/db, ..."


def test_a_configuration_is_written_without_the_password() -> None:
    config = Config(tracking=TrackingConfig(uri="http://u:geheim@h:5000"))
    assert "geheim" not in to_yaml(public(config))
    assert public(config).tracking.uri == "http://...@h:5000"
    assert public(Config()) == Config()
