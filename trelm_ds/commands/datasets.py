"""`trelm prepare` and `trelm verify`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
from pathlib import Path
from typing import NoReturn

from trelm_ds import log
from trelm_ds.errors import UserError


def add_prepare(commands: argparse._SubParsersAction) -> None:
    from trelm_ds.corpus import PrepareOptions

    parser = commands.add_parser(
        "prepare",
        help="make a dataset from text and Wikidata5M",
        description="Convert a MediaWiki dump or linked JSONL (detected by content) to webdataset shards.",
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
        "--tokenizer", required=True, help="tokenizer folder, or 'train' to train WordPiece on this corpus"
    )
    source.add_argument("--out", type=Path, required=True, help="dataset folder to create")
    content = parser.add_argument_group("content")
    content.add_argument("--max-length", type=int, help="longest sequence in tokens")
    content.add_argument(
        "--unit",
        choices=("document", "sentence"),
        help="what one sequence holds; documents that are too long are split between sentences",
    )
    content.add_argument("--vocab-size", type=int, help="vocabulary size for --tokenizer train")
    content.add_argument("--min-words", type=int, help="skip articles of a dump with fewer words")
    content.add_argument(
        "--link-entities", action="store_true", help="find more mentions than the text's own links (TAGME-style)"
    )
    content.add_argument("--link-threshold", type=float, help="drop found mentions that score below this; 0 to 1")
    content.add_argument("--max-malformed", type=float, help="largest share of malformed lines allowed in a file")
    content.add_argument(
        "--hold-out-facts",
        metavar="SHARE|FILE",
        help="take facts out of the graph, to be probed: a share of the triples such as 0.1, drawn by "
        "--hold-out-seed, or a file of Qh<TAB>Pr<TAB>Qt lines; the text stays as it is",
    )
    content.add_argument("--hold-out-seed", type=int, metavar="N", help="which share is held out (default: 0)")
    content.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="keep a share of the documents such as 0.005 out of training, for trainer.eval_every",
    )
    content.add_argument("--license", help="license of the text, for the data card")
    content.add_argument("--shard-mb", type=int, help="size of a tar shard in MB")
    work = parser.add_argument_group("parallelism (does not change the result)")
    work.add_argument("--workers", type=int, help="number of processes")
    work.add_argument("--part", type=_part, metavar="I/N", help="read only part I of N of the text")
    work.add_argument("--merge", action="store_true", help="make the dataset from parts read before")
    work.add_argument(
        "--missing-parts", type=int, metavar="N", help="print which of N parts are missing, such as 2,5, and exit"
    )
    work.add_argument("--chunk-mb", type=float, help="text per task, in MB as stored")
    defaults = {item.name: item.default for item in dataclasses.fields(PrepareOptions)} | {"workers": _cores()}
    for action in parser._actions:
        if action.dest in defaults and defaults[action.dest] not in (None, False, dataclasses.MISSING):
            action.default = defaults[action.dest]
            action.help = f"{action.help} (default: %(default)s)"
    parser.set_defaults(action=_prepare)


class _Stopped(BaseException):
    """Raised on SIGTERM, so that the stack unwinds as after Ctrl-C and worker processes end."""


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
    from trelm_ds.corpus import PrepareOptions, missing_parts, prepare

    names = [item.name for item in dataclasses.fields(PrepareOptions)]
    options = PrepareOptions(**{name: getattr(namespace, name) for name in names})
    if namespace.missing_parts is not None:
        print(",".join(map(str, missing_parts(options, namespace.missing_parts))))
        return 0
    signal.signal(signal.SIGTERM, _stop)
    try:
        manifest, made = prepare(options)
    except (KeyboardInterrupt, _Stopped) as stop:
        log.info("stopped; finished work is kept, the same command goes on")
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


def add_verify(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every file of a dataset against its manifest",
        description="Read every file of a dataset and report damage. Exit code 0: sound, 1: damaged.",
    )
    parser.add_argument("dataset", help="dataset folder of `trelm prepare` (not a URL)")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="drop damaged blocks and missing shards; this makes a different dataset, so first stop runs that read it",
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
            log.error(line)
        if beyond:
            return 1
    manifest, found = verify(folder)
    for line in found:
        log.error(line)
    if found:
        log.info(f"{len(found)} problem(s); `trelm verify --repair {folder}` drops damaged sequences")
    if not found:
        print(f"{folder}: sound; {len(manifest.shards)} shard(s), {manifest.n_sequences:,} sequences")
    return 1 if found else 0
