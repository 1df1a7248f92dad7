"""The house: imports point down, and a room is reached through what its `__init__` exports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "trelm_ds"
# From the roof down, as docs/architecture.md lists them.
ROOMS = (
    "commands",
    "cluster",
    "planning",
    "evaluation",
    "training",
    "objectives",
    "injection",
    "tracking",
    "checkpoints",
    "engine",
    "batches",
    "relatives",
    "importance",
    "kg_embedding",
    "routing",
    "model",
    "corpus",
    "knowledge",
    "shards",
)
ENTRANCE = ("cli", "__main__", "__init__")
# Submodules that are rooms of their own within one: they load what the rest does without.
INNER = ("trelm_ds.knowledge.tables", "trelm_ds.corpus.linking")


def imports(path: Path) -> Iterator[str]:
    """Yield every module of this package that a file names, also in functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if is_module(node.module, alias.name) else node.module


def is_module(package: str, name: str) -> bool:
    """Whether `from package import name` gives a module, and not what the package exports under the same name."""
    folder = PACKAGE.parent / package.replace(".", "/")
    if not (folder / f"{name}.py").is_file() and not (folder / name).is_dir():
        return False
    entrance = ast.parse((folder / "__init__.py").read_text())
    exported = [alias.name for node in ast.walk(entrance) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return name not in exported


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def test_every_room_is_known() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    page = (REPO / "docs" / "architecture.md").read_text()
    listed = [name for name in re.findall(r"`(?:trelm_ds/)?(\w+)/`", page.split("### Inside")[0]) if name in ROOMS]
    assert list(dict.fromkeys(listed)) == list(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down_and_through_the_door(room: str) -> None:
    below = ROOMS[ROOMS.index(room) + 1 :]
    wrong = []
    for path in files_of(room):
        for module in imports(path):
            parts = module.split(".")
            if parts[0] != "trelm_ds" or len(parts) < 2 or parts[1] == room:
                continue
            # Under Slurm most of `cluster` must start without torch, so commands take its modules one by one.
            one_by_one = module in INNER or (room, parts[1]) == ("commands", "cluster")
            inside = len(parts) > 2 and parts[1] in ROOMS and not one_by_one
            if (parts[1] in ROOMS and parts[1] not in below) or parts[1] in ENTRANCE or inside:
                wrong.append(f"{path.relative_to(REPO)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_ground_knows_no_room() -> None:
    ground = [path for path in PACKAGE.glob("*.py") if path.stem not in ENTRANCE]
    wrong = [
        f"{path.name} imports {m}"
        for path in ground
        for m in imports(path)
        if m.split(".")[1:2] and m.split(".")[1] in ROOMS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_within_a_room(room: str) -> None:
    name = {
        path: f"trelm_ds.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}"
        for path in files_of(room)
    }
    edges = {name[path]: set(imports(path)) & set(name.values()) for path in name}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())
