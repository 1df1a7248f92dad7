"""The `trelm` command: thin sub-commands over the package."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trelm_ds import __version__
from trelm_ds.errors import RankError, UserError
from trelm_ds.files import write_atomically
from trelm_ds.redact import without_password

_DESCRIPTION = "Pre-train TRELM, a knowledge-enhanced BERT/RoBERTa, with DeepSpeed."


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one line instead of the whole usage, and takes no abbreviations."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit codes: 0 done, 1 a check failed, 2 a mistake of the user's, 75 stopped by its time limit, 128 + n by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _warn_in_one_line
    try:
        code = _run(arguments)
    except UserError as error:
        # Under torchrun all ranks raise the same mistake; one line is enough.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
            print(f"trelm: error: {without_password(str(error))}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `trelm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _warn_in_one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {without_password(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> int:
    parser = _Parser(prog="trelm", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"trelm-ds {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_prepare(commands)
    _add_verify(commands)
    commands.add_parser("pretrain", help="train on a prepared dataset", add_help=False)
    _add_sync(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_importance(commands)
    _add_strategies(commands)
    _add_neurons(commands)
    _add_checkpoints(commands)
    if arguments[:1] == ["pretrain"]:  # its options are the settings' tree, read by jsonargparse
        return _pretrain(arguments[1:])
    namespace = parser.parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = namespace.action
    return action(namespace)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    from trelm_ds.corpus import PrepareOptions

    parser = commands.add_parser(
        "prepare",
        help="turn text and Wikidata5M into a dataset",
        description="Turns a MediaWiki dump or linked JSONL (told apart by content) into webdataset shards.",
    )
    source = parser.add_argument_group("input and output")
    source.add_argument(
        "--source", type=Path, required=True, help="dump (.xml, .xml.bz2), linked JSONL(.gz), or a folder"
    )
    source.add_argument(
        "--wikidata5m", type=Path, required=True, help="folder with wikidata5m_*.txt[.gz] or wikidata5m_*.tar.gz"
    )
    source.add_argument("--page-props", type=Path, help="the dump's *-page_props.sql.gz: QIDs of its pages")
    source.add_argument(
        "--tokenizer", required=True, help="tokenizer folder, or 'train' for a WordPiece one on this corpus"
    )
    source.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    content = parser.add_argument_group("content")
    content.add_argument("--max-length", type=int, help="longest sequence in tokens")
    content.add_argument(
        "--unit",
        choices=("document", "sentence"),
        help="what becomes one sequence; a document is cut between sentences where it is too long",
    )
    content.add_argument("--vocab-size", type=int, help="for --tokenizer train")
    content.add_argument("--min-words", type=int, help="leave out a dump's articles with fewer words")
    content.add_argument(
        "--link-entities", action="store_true", help="find further mentions beside the text's own links (TAGME-style)"
    )
    content.add_argument("--link-threshold", type=float, help="drop found mentions with a lower score; 0 to 1")
    content.add_argument("--max-malformed", type=float, help="share of a file's lines that may be malformed")
    content.add_argument("--license", help="of the text, for the data card")
    content.add_argument("--shard-mb", type=int, help="size of a tar shard")
    work = parser.add_argument_group("work (does not change the result)")
    work.add_argument("--workers", type=int, help="processes")
    work.add_argument("--part", type=_part, metavar="I/N", help="only read the I-th of N parts of the text")
    work.add_argument("--merge", action="store_true", help="make the dataset of the parts that were read before")
    work.add_argument("--chunk-mb", type=float, help="text that one task reads, in stored MB")
    defaults = {item.name: item.default for item in dataclasses.fields(PrepareOptions)} | {"workers": _cores()}
    for action in parser._actions:
        if action.dest in defaults and defaults[action.dest] not in (None, False, dataclasses.MISSING):
            action.default = defaults[action.dest]
            action.help = f"{action.help} (default: %(default)s)"
    parser.set_defaults(action=_prepare)


class _Stopped(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that worker processes end."""


def _stop(*_: object) -> NoReturn:
    raise _Stopped


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected I/N such as 3/8, got {text!r}")
    return int(number), int(of)


def _prepare(namespace: argparse.Namespace) -> int:
    from trelm_ds.corpus import PrepareOptions, prepare

    names = [item.name for item in dataclasses.fields(PrepareOptions)]
    options = PrepareOptions(**{name: getattr(namespace, name) for name in names})
    signal.signal(signal.SIGTERM, _stop)
    try:
        manifest, made = prepare(options)
    except (KeyboardInterrupt, _Stopped) as stop:
        print("stopped; finished work is kept, the same command goes on", file=sys.stderr, flush=True)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    if manifest is None:
        if made:
            print(f"part {options.part[0]}/{options.part[1]} is done; after the last one: trelm prepare ... --merge")  # type: ignore[index]
        else:
            print(f"{options.out}: is there already")
        return 0
    if made:
        for name, value in manifest.counts.items():
            print(f"{value:>14,}  {name}")
    shards = len(manifest.shards)
    print(f"{manifest.n_sequences:>14,}  sequences, {manifest.n_tokens:,} tokens in {shards} shard(s)")
    state = "ready" if made else "already made from this request"
    print(f"{namespace.out}: {state}, fingerprint {manifest.fingerprint[:16]}; see {namespace.out}/README.md")
    return 0


def _add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every byte of a dataset against its manifest",
        description="Reads every file of a dataset and names what is damaged. Exit code 0: sound, 1: damage was found.",
    )
    parser.add_argument("dataset", help="folder of `trelm prepare` (not a URL)")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="drop damaged blocks and missing shards: another dataset, so stop the runs that read it first",
    )
    parser.set_defaults(action=_verify)


def _verify(namespace: argparse.Namespace) -> int:
    from trelm_ds.shards import repair, verify

    if "://" in namespace.dataset:
        raise UserError(f"{namespace.dataset}: verify works on folders; run it before the dataset is uploaded")
    folder = Path(namespace.dataset)
    if namespace.repair:
        done, beyond = repair(folder)
        for line in done:
            print(line)
        for line in beyond:
            print(f"trelm: error: {line}", file=sys.stderr)
        if beyond:
            return 1
    manifest, found = verify(folder)
    for line in found:
        print(f"trelm: error: {line}", file=sys.stderr)
    if found:
        print(f"{len(found)} problem(s); `trelm verify --repair {folder}` drops damaged sequences", file=sys.stderr)
    if not found:
        print(f"{folder}: sound; {len(manifest.shards)} shard(s), {manifest.n_sequences:,} sequences")
    return 1 if found else 0


def _pretrain(arguments: list[str]) -> int:
    # Until training begins there is nothing to save, and an exception in the middle of an import surfaces anywhere.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jsonargparse import ArgumentParser

    from trelm_ds.config import public, to_yaml
    from trelm_ds.settings import add_settings, parse

    parser = ArgumentParser(
        prog="trelm pretrain",
        description="Trains on a prepared dataset; torchrun starts several ranks. A run found in --out is continued.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--data", type=str, default=None, help="dataset of `trelm prepare`: folder or fsspec URL")
    parser.add_argument("--out", type=str, default=None, help="run folder: checkpoints, metrics, resolved settings")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and exit")
    add_settings(parser)
    config, namespace = parse(parser, arguments)
    if namespace.print_config:
        print(to_yaml(public(config)), end="")
        return 0
    for name in ("data", "out"):
        if getattr(namespace, name) is None:
            raise UserError(f"--{name}: required; see `trelm pretrain --help`")
    from trelm_ds.training import FailedElsewhereError, pretrain

    try:
        return pretrain(config, namespace.data, Path(namespace.out))
    except FailedElsewhereError:  # which has been said
        return 1


def _add_sync(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sync",
        help="send a run's waiting log points to MLflow",
        description="Sends what MLflow could not take while the run was training. A run that continues does it by "
        "itself. Nothing is sent twice, so it may be repeated.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--uri", help="tracking URI (default: the one that the run uses)")
    parser.set_defaults(action=_sync)


def _sync(namespace: argparse.Namespace) -> int:
    from trelm_ds.training import sync

    number, address = sync(namespace.run, namespace.uri)
    print(f"{namespace.run}: {number} entries sent to {address}")
    return 0


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("export", help="write a checkpoint as a Hugging Face folder")
    parser.add_argument(
        "source", type=Path, metavar="RUN|CHECKPOINT", help="run folder (its last checkpoint) or a checkpoint"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for AutoModelForMaskedLM.from_pretrained")
    parser.set_defaults(action=_export)


def _export(namespace: argparse.Namespace) -> int:
    from trelm_ds.training import export

    exported = export(namespace.source, namespace.out)
    print(f"{namespace.out}: exported from {exported}")
    return 0


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="score a model")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    lama = tasks.add_parser("lama", help="LAMA cloze probes: P@1 per relation and macro, beside the majority baseline")
    lama.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a masked language model")
    lama.add_argument("--data", type=Path, required=True, help="folder with relations.jsonl and TREx/P*.jsonl[.gz]")
    lama.add_argument("--out", type=Path, help="JSON file for the result; a bar chart is drawn beside it")
    lama.add_argument(
        "--vocab", type=Path, help="candidate words, one a line (default: DATA/common_vocab*.txt, else all)"
    )
    lama.add_argument("--batch-size", type=int, default=64, help="prompts per forward pass (default: %(default)s)")
    lama.set_defaults(action=_evaluate_lama)


def _evaluate_lama(namespace: argparse.Namespace) -> int:
    from trelm_ds.evaluation import evaluate_lama, format_table, plot, write_result

    if namespace.batch_size < 1:
        raise UserError(f"--batch-size: must be at least 1, got {namespace.batch_size}")
    _check_result_file(namespace.out, "lama.json")
    result = evaluate_lama(namespace.model, namespace.data, batch_size=namespace.batch_size, vocabulary=namespace.vocab)
    print(format_table(result))
    if namespace.out:
        write_result(result, namespace.out)
        picture = namespace.out.with_suffix(".png")
        plot(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0


def _add_importance(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "importance",
        help="score how much each sentence depends on its mentions",
        description="Stores the cosine of Eq. 1 for every mention in DATASET/importance. Stop it at any time: the same "
        "command continues. Several parts may run at once.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument(
        "--model", type=Path, required=True, help="Hugging Face folder of the backbone; an MLM head is not needed"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-tokens", type=int, help="tokens of a forward pass at most (default: 2048 on a CPU, 65536 on a GPU)"
    )
    parser.add_argument(
        "--scope",
        choices=("long_tail", "all"),
        default="long_tail",
        help="mentions of long-tail entities with a triple, or all: the strategies high_frequency and all need those "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--entity-threshold", type=int, help="mentions below which an entity is long-tail (default: the corpus mean)"
    )
    parser.add_argument("--part", default="1/1", metavar="i/n", help="score every n-th shard, from the i-th on")
    parser.set_defaults(action=_importance)


def _importance(namespace: argparse.Namespace) -> int:
    from trelm_ds.importance import Part, ScoreOptions, score_dataset

    names = ("dataset", "model", "device", "batch_tokens", "scope", "entity_threshold")
    options = {name: getattr(namespace, name) for name in names}
    result = score_dataset(ScoreOptions(**options, part=Part.parse(namespace.part)))
    for name, value in result.counts.items():
        print(f"{value:>12,}  {name}")
    if result.counts:
        scored = result.counts["scored"]
        print(f"{scored:>12,}  scored in {result.seconds:.0f} s: {scored / max(result.seconds, 1e-9):.0f} mentions/s")
    state = "complete" if result.complete else "shards of other parts are still missing"
    print(f"{result.folder}: {result.shards} shard(s), {result.skipped} scored before; {state}")
    return 0


def _add_strategies(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("strategies", help="which mentions each strategy of Figure 3 would keep")
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument(
        "--entity-threshold", type=int, help="mentions below which an entity is long-tail (default: the corpus mean)"
    )
    parser.add_argument(
        "--quantile", type=float, default=0.5, help="share of the candidates that is important (default: %(default)s)"
    )
    parser.add_argument("--max-per-sequence", type=int, default=8, help="mentions at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers; a bar chart is drawn beside it")
    parser.set_defaults(action=_strategies)


def _strategies(namespace: argparse.Namespace) -> int:
    from trelm_ds.importance import compare_strategies, format_strategies, plot_strategies
    from trelm_ds.knowledge import Selection

    _check_result_file(namespace.out, "strategies.json")
    selection = Selection("all", namespace.entity_threshold, namespace.quantile, namespace.max_per_sequence)
    result = compare_strategies(namespace.dataset, selection)
    print(format_strategies(result))
    if namespace.out:
        picture = namespace.out.with_suffix(".png")
        write_atomically(namespace.out, json.dumps(result, indent=1) + "\n")
        plot_strategies(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0


def _add_neurons(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "neurons",
        help="which feed-forward neurons a fact comes from",
        description="Attributes the answer to a cloze question to neurons (Eq. 11).",
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN|CHECKPOINT|MODEL", help="run, checkpoint or Hugging Face folder"
    )
    parser.add_argument("--prompt", required=True, help="sentence with [MASK] in the place of the answer")
    parser.add_argument("--answer", required=True, help="what belongs there")
    parser.add_argument("--top", type=int, default=20, help="neurons listed (default: %(default)s)")
    parser.add_argument(
        "--quadrature", choices=("gauss3", "right20"), default="gauss3", help="nodes (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the numbers; a heat map is drawn beside it")
    parser.set_defaults(action=_neurons)


def _neurons(namespace: argparse.Namespace) -> int:
    from trelm_ds.corpus import load_tokenizer
    from trelm_ds.routing import explain, frozen, plot, read_paths, table, to_json
    from trelm_ds.training import ROUTING_FOLDER, open_model

    if namespace.top < 1:
        raise UserError(f"--top: must be at least 1, got {namespace.top}")
    _check_result_file(namespace.out, "neurons.json")
    opened = open_model(namespace.source)
    view = frozen(opened.model, {name: weight.detach() for name, weight in opened.model.named_parameters()})
    paths = opened.source / ROUTING_FOLDER
    path = read_paths(paths)["path"] if paths.is_dir() else None
    tokenizer = load_tokenizer(opened.tokenizer)
    found = explain(view, tokenizer, namespace.prompt, namespace.answer, namespace.quadrature, path)
    result = to_json(found, namespace.top)
    print(table(result))
    if namespace.out:
        write_atomically(namespace.out, json.dumps(result, indent=1) + "\n")
        plot(found, namespace.out.with_suffix(".png"))
        print(f"{namespace.out} and {namespace.out.with_suffix('.png')} written")
    return 0


def _add_checkpoints(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "checkpoints",
        help="list, check or prune a run's checkpoints",
        description="Lists the committed checkpoints of a run. Exit code 1 when --verify finds a damaged one.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of `trelm pretrain`")
    parser.add_argument("--verify", action="store_true", help="check size and hash of every file")
    parser.add_argument("--prune", type=int, metavar="KEEP", help="keep the newest KEEP, remove the others")
    parser.set_defaults(action=_checkpoints)


def _checkpoints(namespace: argparse.Namespace) -> int:
    from trelm_ds.training.catalogue import catalogue, prune_run, to_table

    if namespace.prune is not None:
        for path in prune_run(namespace.run, namespace.prune):
            print(f"{path}: removed")
    found = catalogue(namespace.run, namespace.verify)
    print(to_table(found, namespace.run, namespace.verify) if found else f"{namespace.run}: no checkpoint yet")
    return int(any(entry.problem for entry in found))


def _check_result_file(out: Path | None, example: str) -> None:
    """--out of commands that write a JSON file and draw beside it."""
    if out is None:
        return
    if out.suffix in ("", ".png") or not out.resolve().parent.is_dir():
        raise UserError(f"--out: give a file such as {example} in an existing folder, not {out}")
    try:  # before the work, not after it
        with tempfile.TemporaryFile(dir=out.resolve().parent):
            pass
    except OSError as error:
        raise UserError(f"--out: {out.resolve().parent} cannot be written: {error.strerror}") from None
    for path in (out, out.with_suffix(".png")):
        if path.is_dir():
            raise UserError(f"--out: {path} is a folder")
