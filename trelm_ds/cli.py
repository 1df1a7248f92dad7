"""The `trelm` command: thin sub-commands over the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from trelm_ds import __version__
from trelm_ds.errors import RankError, UserError

_DESCRIPTION = "Pre-train TRELM, a knowledge-enhanced BERT/RoBERTa, with DeepSpeed."


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a check failed, 2 a mistake of the user's, 128 + n stopped by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _warn_in_one_line
    try:
        code = _run(arguments)
    except UserError as error:
        # Under torchrun all ranks raise the same mistake; one line is enough.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
            print(f"trelm: error: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `trelm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _warn_in_one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> int:
    parser = _Parser(prog="trelm", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"trelm-ds {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_prepare(commands)
    _add_verify(commands)
    commands.add_parser("pretrain", help="train on a prepared dataset", add_help=False)
    _add_export(commands)
    _add_evaluate(commands)
    if arguments[:1] == ["pretrain"]:  # its options are the settings' tree, read by jsonargparse
        return _pretrain(arguments[1:])
    namespace = parser.parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = namespace.action
    return action(namespace)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "prepare",
        help="turn text and Wikidata5M into a dataset",
        description="Turns a MediaWiki dump or linked JSONL (told apart by content) into webdataset shards.",
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="dump (.xml, .xml.bz2), linked JSONL(.gz), or a folder"
    )
    parser.add_argument("--wikidata5m", type=Path, required=True, help="folder with wikidata5m_*.txt[.gz]")
    parser.add_argument(
        "--tokenizer", required=True, help="tokenizer folder, or 'train' for a WordPiece one on this corpus"
    )
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    parser.add_argument("--max-length", type=int, default=512, help="longest sequence in tokens (default: %(default)s)")
    parser.add_argument(
        "--unit",
        choices=("document", "sentence"),
        default="document",
        help="what becomes one sequence (default: %(default)s, cut between sentences where it is too long)",
    )
    parser.add_argument("--vocab-size", type=int, default=30522, help="for --tokenizer train (default: %(default)s)")
    parser.add_argument("--shard-mb", type=int, default=64, help="size of a tar shard (default: %(default)s)")
    parser.set_defaults(action=_prepare)


def _prepare(namespace: argparse.Namespace) -> int:
    from trelm_ds.corpus import PrepareOptions, prepare

    names = ("source", "wikidata5m", "tokenizer", "out", "max_length", "vocab_size", "shard_mb", "unit")
    manifest, made = prepare(PrepareOptions(**{name: getattr(namespace, name) for name in names}))
    for name, value in manifest.counts.items():
        print(f"{value:>12,}  {name}")
    print(f"{manifest.n_sequences:>12,}  sequences, {manifest.n_tokens:,} tokens in {len(manifest.shards)} shard(s)")
    state = "ready" if made else "already made from this request"
    print(f"{namespace.out}: {state}, fingerprint {manifest.fingerprint[:16]}")
    return 0


def _add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("verify", help="check every byte of a dataset against its manifest")
    parser.add_argument("dataset")
    parser.add_argument("--repair", action="store_true", help="drop what is damaged; stop runs that read it first")
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
    if not found:
        print(f"{folder}: sound; {len(manifest.shards)} shard(s), {manifest.n_sequences:,} sequences")
    return 1 if found else 0


def _pretrain(arguments: list[str]) -> int:
    # Until training begins there is nothing to save, and an exception in the middle of an import surfaces anywhere.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jsonargparse import ArgumentParser

    from trelm_ds.config import to_yaml
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
        print(to_yaml(config), end="")
        return 0
    for name in ("data", "out"):
        if getattr(namespace, name) is None:
            raise UserError(f"--{name}: required; see `trelm pretrain --help`")
    from trelm_ds.training import pretrain

    return pretrain(config, namespace.data, Path(namespace.out))


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
    if namespace.out and (namespace.out.suffix in ("", ".png") or not namespace.out.resolve().parent.is_dir()):
        raise UserError(f"--out: give a file such as lama.json in an existing folder, not {namespace.out}")
    result = evaluate_lama(namespace.model, namespace.data, batch_size=namespace.batch_size, vocabulary=namespace.vocab)
    print(format_table(result))
    if namespace.out:
        write_result(result, namespace.out)
        picture = namespace.out.with_suffix(".png")
        plot(result, picture)
        print(f"{namespace.out} and {picture} written")
    return 0
