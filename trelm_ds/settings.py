"""Reads a run's settings: YAML file plus dotted overrides -> `Config`; errors name file, line and setting."""

from __future__ import annotations

import dataclasses
import difflib
import re
from argparse import ArgumentError
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from trelm_ds.config import Config, flatten, problems
from trelm_ds.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def add_settings(parser: ArgumentParser) -> None:
    """Adds `--config FILE` and one dotted option for every setting of `Config`."""
    parser.add_argument("--config", action="config", help="YAML file with settings; dotted options override it")
    parser.add_class_arguments(Config, None)


def parse(parser: ArgumentParser, argv: list[str]) -> tuple[Config, Namespace]:
    """Parses `argv` with a parser that has the settings.

    Returns:
        the checked configuration, and the namespace with the parser's other arguments.

    Raises:
        UserError: unknown or mistyped setting, value out of range; names `file:line: setting` or `--setting`.
    """
    if sum(arg == "--config" or arg.startswith("--config=") for arg in argv) > 1:
        raise UserError("--config: given twice; put the settings into one file")
    # jsonargparse lets the later one win; a file must not undo the overrides that stand before it.
    at = next((index for index, arg in enumerate(argv) if arg.split("=")[0] == "--config"), 0)
    width = 2 if argv[at : at + 1] == ["--config"] else 1
    argv = [*argv[at : at + width], *argv[:at], *argv[at + width :]]
    places = Places(_config_path(argv), {arg.split("=")[0][2:] for arg in argv if arg.startswith("--")})
    try:
        namespace = parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(_one_line(str(error), places)) from None
    config = _build(parser, namespace)
    for section in dataclasses.fields(config):
        for item in dataclasses.fields(getattr(config, section.name)):
            if getattr(getattr(config, section.name), item.name) is None and "None" not in str(item.type):
                raise UserError(f"{places.of(f'{section.name}.{item.name}')}: needs a value, got null")
    for name, what in problems(config):
        raise UserError(f"{places.of(name)}: {what}")
    return config, namespace


def _build(parser: ArgumentParser, namespace: Namespace) -> Config:
    built = parser.instantiate(namespace)
    return Config(**{item.name: getattr(built, item.name) for item in dataclasses.fields(Config)})


def _config_path(argv: list[str]) -> Path | None:
    for index, arg in enumerate(argv):
        if arg == "--config" and index + 1 < len(argv):
            return Path(argv[index + 1])
        if arg.startswith("--config="):
            return Path(arg.partition("=")[2])
    return None


def _one_line(message: str, places: Places) -> str:
    """jsonargparse's message over several lines as one line with the place in front."""
    if unknown := re.match(r"unrecognized arguments: --([\w.]+)", message):
        near = difflib.get_close_matches(unknown.group(1), flatten(Config()), n=1)
        return f"--{unknown.group(1)}: unknown setting; " + (f"did you mean --{near[0]}?" if near else "see --help")
    match = re.match(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    text = " ".join((match.group(2) if match else message).split())
    text = re.sub(r"Expected an? <class '(\w+)'>\.? Got value: (.*)", r"expected \1, got '\2'", text)
    text = re.sub(r"Expected an? typing\.Literal\[(.*?)\]\.? Got value: (.*)", r"expected one of \1, got '\2'", text)
    return f"{places.of(match.group(1))}: {text}" if match else text


class Places:
    """Where each setting came from, so that an error can name file and line.

    Args:
        path: the YAML file, or None.
        overrides: dotted names given on the command line.
    """

    def __init__(self, path: Path | None, overrides: set[str]) -> None:
        self.path, self._overrides = path, overrides
        self._lines: dict[str, int] = {}
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError:
            raise UserError(f"--config: {path} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--config: cannot read {path}: {error}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else "something else"
            raise UserError(f"{path}:1: expected settings such as 'trainer:', found {found}")
        self._walk(root, Config, "")

    def _walk(self, node: yaml.MappingNode, kind: type, prefix: str) -> None:
        """Notes the line of every key; the first unknown one is an error with the nearest known name."""
        known = {item.name: item for item in dataclasses.fields(kind)}
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value not in known:
                near = difflib.get_close_matches(str(key.value), known, n=1)
                hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known here: {', '.join(known)}"
                raise UserError(f"{self.path}:{line}: unknown setting '{name}'; {hint}")
            if name in self._lines:
                raise UserError(f"{self.path}:{line}: '{name}' stands twice, first on line {self._lines[name]}")
            self._lines[name] = line
            section = known[key.value].default_factory
            if isinstance(section, type) and dataclasses.is_dataclass(section):
                if not isinstance(value, yaml.MappingNode):
                    raise UserError(f"{self.path}:{line}: '{name}' is a section; give its settings indented below it")
                self._walk(value, section, f"{name}.")

    def of(self, name: str) -> str:
        """`file:line: name`, or `--name` for a command-line override or a default."""
        if name not in self._overrides and name in self._lines:
            return f"{self.path}:{self._lines[name]}: {name}"
        return f"--{name}"
