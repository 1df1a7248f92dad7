"""Ranks that share a model are on one node, whether or not the launcher says how many a node has."""

from __future__ import annotations

import pytest

from trelm_ds.errors import UserError
from trelm_ds.tensor_ranks import _check


@pytest.mark.parametrize(
    ("degree", "hosts", "local"),
    [
        (2, ["a", "a"], None),
        (2, ["a", "a", "b", "b"], "2"),
        (2, ["a", "a", "a", "a", "b", "b"], None),
        (4, ["a"] * 8, "4"),  # nodes that are simulated on one host
    ],
)
def test_groups_on_one_node(degree: int, hosts: list[str], local: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    _check(degree, hosts)


@pytest.mark.parametrize(
    ("degree", "hosts", "local", "problem"),
    [
        (2, ["a", "b"], None, "does not divide the 1 process of a node"),  # a pod each, as in a PyTorchJob
        (2, ["a", "b", "a", "b"], None, "ranks 0 to 1 are on a and b; "),  # ranks that are dealt out in turns
        (2, ["a", "a", "a"], "3", "does not divide the 3 processes of a node"),
        (4, ["a", "a"], None, "does not divide the 2 processes of a node"),
        (4, ["a"] * 4, "2", "does not divide the 2 processes of a node"),
    ],
)
def test_groups_on_two_nodes(
    degree: int, hosts: list[str], local: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    with pytest.raises(UserError, match=problem):
        _check(degree, hosts)
