"""Parse a run's settings, YAML files plus dotted overrides, into a `Config`; errors name file, line and setting."""

from __future__ import annotations

import dataclasses
import difflib
import re
from argparse import ArgumentError
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from trelm_ds.config import Config, flatten
from trelm_ds.config_rules import problems
from trelm_ds.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_REPOSITORY = Path(__file__).resolve().parents[1]


def add_settings(parser: ArgumentParser) -> None:
    """Add `--config FILE`, which may be repeated, and one dotted option for every setting of `Config`."""
    text = "YAML file with settings; may be given several times, later files win and dotted options win over all files"
    parser.add_argument("--config", action="config", help=text)
    parser.add_class_arguments(Config, None)


def parse(parser: ArgumentParser, argv: list[str]) -> tuple[Config, Namespace]:
    """Parse and check `argv`, merging several files setting by setting.

    Args:
        parser: has been given to `add_settings`.

    Returns:
        the checked configuration, and the namespace with the parser's other arguments.

    Raises:
        UserError: an unknown or mistyped setting, or a value out of range; names `file:line: setting` or `--setting`.
    """
    files, others = _split(argv)
    _refuse_sections(others)
    places = Places([Path(file) for file in files], {arg.split("=")[0][2:] for arg in others if arg.startswith("--")})
    try:
        # In jsonargparse the later argument wins, but a file must not undo an override that stands before it.
        namespace = parser.parse_args([*(f"--config={file}" for file in files), *others])
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


def find_ds_config(name: str) -> Path:
    """Find the DeepSpeed file: at the path as given, else relative to the repository.

    Raises:
        UserError: there is no such file.
    """
    for path in (Path(name), _REPOSITORY / name):
        if path.is_file():
            return path
    shipped = ", ".join(path.name for path in shipped_ds_configs())
    raise UserError(f"trainer.ds_config: {name} does not exist; those in ds_configs/ are {shipped}")


def shipped_ds_configs() -> list[Path]:
    """List the DeepSpeed files that come with the code, by name."""
    return sorted((_REPOSITORY / "ds_configs").glob("*.json"))


def _build(parser: ArgumentParser, namespace: Namespace) -> Config:
    built = parser.instantiate(namespace)
    return Config(**{item.name: getattr(built, item.name) for item in dataclasses.fields(Config)})


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the command line into the files of all `--config` and the other arguments."""
    files, others = list[str](), list[str]()
    rest = iter(argv)
    for arg in rest:
        name, _, value = arg.partition("=")
        if name != "--config":
            others.append(arg)
            continue
        file = value if "=" in arg else next(rest, "")
        if not file or file.startswith("--"):
            raise UserError("--config: needs a file")
        files.append(file)
    return files, others


def _refuse_sections(arguments: list[str]) -> None:
    """Refuse `--section VALUE`, which the parser would read as the name of one more file."""
    sections = {
        section.name: dataclasses.fields(getattr(Config(), section.name)) for section in dataclasses.fields(Config)
    }
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--")
        if argument.startswith("--") and name in sections:
            example = sections[name][0].name
            raise UserError(f"--{name}: is a section; give its settings one by one, such as --{name}.{example}")


def _one_line(message: str, places: Places) -> str:
    """Turn jsonargparse's message of several lines into one line with the place in front."""
    if unknown := re.match(r"unrecognized arguments: --([\w.]+)", message):
        near = difflib.get_close_matches(unknown.group(1), flatten(Config()), n=1)
        return f"--{unknown.group(1)}: unknown setting; " + (f"did you mean --{near[0]}?" if near else "see --help")
    match = re.match(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL)
    text = " ".join((match.group(2) if match else message).split())
    text = re.sub(r"Expected an? <class '(\w+)'>\.? Got value: (.*)", r"expected \1, got '\2'", text)
    text = re.sub(r"Expected an? typing\.Literal\[(.*?)\]\.? Got value: (.*)", r"expected one of \1, got '\2'", text)
    union = r".*Union subtypes Subtypes: \[(?:<class ')?(\w+)[^\]]*.*Given value: (.*)"
    other = "null" if "NoneType" in text else "a pair such as [0.3, 0.15]"
    text = re.sub(union, rf"expected \1 or {other}, got '\2'", text)
    if match and text.startswith("expected str"):  # YAML has read a number or the like
        text += "; put it in quotes"
    if match and text.startswith("expected tuple"):
        default = flatten(Config()).get(match.group(1)) or (0.25, 0.75)
        text += f"; write it as [{default[0]}, {default[1]}]"
    return f"{places.of(match.group(1))}: {text}" if match else text


class Places:
    """Remembers where each setting was given, so that an error can name file and line.

    Args:
        paths: the YAML files, in order; the last one that holds a setting counts.
        overrides: dotted names given on the command line.

    Raises:
        UserError: a file cannot be read, is not YAML, or holds unknown or repeated settings.
    """

    def __init__(self, paths: list[Path], overrides: set[str]) -> None:
        self._overrides = overrides
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            self._places |= {name: (path, line) for name, line in _lines_of(path).items()}

    def of(self, name: str) -> str:
        """Return `file:line: name`, or `--name` for a command-line override or a default."""
        if name not in self._overrides and name in self._places:
            path, line = self._places[name]
            return f"{path}:{line}: {name}"
        return f"--{name}" if "." in name else f"--{name.replace('_', '-')}"  # settings have a section, options none


def _lines_of(path: Path) -> dict[str, int]:
    """Map every setting and section in a YAML file to its line."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"--config: {path} does not exist") from None
    except OSError as error:
        raise UserError.because(f"--config: cannot read {path}: {error.strerror}", error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config: cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "something else"
        raise UserError(f"{path}:1: expected settings such as 'trainer:', found {found}")
    lines: dict[str, int] = {}
    _walk(root, Config, "", path, lines)
    return lines


def _walk(node: yaml.MappingNode, kind: type, prefix: str, path: Path, lines: dict[str, int]) -> None:
    """Record the line of every key below `node`; raise for an unknown one, suggesting the nearest known name."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.value not in known:
            near = difflib.get_close_matches(str(key.value), known, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known here: {', '.join(known)}"
            raise UserError(f"{path}:{line}: unknown setting '{name}'; {hint}")
        if name in lines:
            raise UserError(f"{path}:{line}: '{name}' stands twice, first on line {lines[name]}")
        lines[name] = line
        section = known[key.value].default_factory
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            if not isinstance(value, yaml.MappingNode):
                raise UserError(f"{path}:{line}: '{name}' is a section; give its settings indented below it")
            _walk(value, section, f"{name}.", path, lines)
