"""Feed damaged and invented input to every reader: each input is read, or refused in one line, within seconds.

python tools/fuzz.py [--inputs 10000] [--seed 0] [--only dump npy ...]

Each input is a function of its number and the seed: `--only KIND --first NUMBER --inputs 1` repeats a finding.
Whatever is not a `UserError` of one line is a finding: another exception, a hang, a program started, a pickle read, a
file written outside the working folder. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from trelm_ds.config import Config, TrainerConfig, flatten
from trelm_ds.corpus.linked import parse_linked
from trelm_ds.corpus.wikipedia import article_of, parse_page
from trelm_ds.engine import ds_keys, resolve_ds_config
from trelm_ds.errors import UserError
from trelm_ds.evaluation import (
    compare_models,
    find_models,
    glue_tasks,
    read_glue,
    read_relation,
    read_typing,
    to_html,
    to_markdown,
)
from trelm_ds.evaluation.lama.data import read_parts
from trelm_ds.files import load_array
from trelm_ds.injection.kg_file import read_kg_file
from trelm_ds.knowledge import GraphFile, read_names, read_triples
from trelm_ds.model import load_config
from trelm_ds.progress import track
from trelm_ds.relatives.reading import read_checkpoint
from trelm_ds.settings import add_settings, parse
from trelm_ds.shards import Block, Sequence

LIMIT_S = 20
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 1e30, 10**30, -(10**9), float("nan"), float("inf"), "", "auto", "\x1b[2J", "a\nb"),
    *("5e8", "\x00", [], {}, [[]], {"": {}}, ["x"] * 50, "é" * 300, {"enabled": True}, "\ud800", 0.1, "cpu", "nvme"),
]


# --- Damage ---
def damaged(draw: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert or exchange some bytes."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at, n = draw.randrange(len(changed) + 1), draw.randint(1, 40)
        kind = draw.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : at + n]
        elif kind == 2:
            changed[at:at] = changed[at : at + n] * draw.randint(1, 20)
        elif kind == 3:
            changed[at:at] = draw.choice(_PIECES)
        elif kind == 4:
            changed[at : at + n] = draw.randbytes(n)
        else:
            del changed[at:]
    return bytes(changed)


_PIECES = [
    *(b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\n\n", b"\t", b'"', b"{", b"}", b"[[", b"]]", b"{{", b"}}"),
    *(
        b"{|",
        b"|}",
        b"<ref>",
        b"</ref>",
        b"<!--",
        b"-->",
        b"|",
        b"''",
        b"==",
        b"&amp;",
        b"&#x1b;",
        b"&#0;",
        b"<nowiki>",
    ),
    *(b"</page>", b"<page>", b"[http://x ", b"__TOC__", b"\xe2\x80\xae", b"Q99999999999", b"-1", b"1e999", b"9" * 5000),
    *(b"[" * 3000, b"{{" * 400, b"[[" * 400, b"'" * 500, b"<b>" * 300, b"\n*" * 300, b"<div" * 200, b"{{a|" * 200),
    b":{|\n" * 100,
]


def odd_object(draw: random.Random, known: dict[str, Any]) -> dict[str, Any]:
    """Invent nested settings of known and unknown names with odd values."""
    found: dict[str, Any] = {}
    for _ in range(draw.randint(0, 6)):
        name = draw.choice([*known, "unknown", "", "stage", "__class__"])
        value = copy.deepcopy(draw.choice([*_ODD, known.get(name)]))  # what is put into it must not stay for others
        *sections, key = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                break
        else:
            place[key] = value
    return found


# --- Inputs, and who reads them ---
_PAGE = """<page><title>Berlin</title><ns>0</ns><id>3</id><revision><id>7</id><model>wikitext</model><text>
{{Infobox settlement|name=Berlin|area={{convert|891|km2|sqmi}}}} '''Berlin''' ({{IPAc-en|b|ɜː}}; born 1237) is the
[[capital city|capital]] of [[Germany]] &amp; lies on the [[Spree (river)|Spree]].
&lt;ref name="a"&gt;{{cite web|url=x}}&lt;/ref&gt; It has [http://x.org a site] and &lt;i&gt;more&lt;/i&gt;.
== History ==
{| class="wikitable"
! a !! b
|-
| 1 || [[File:X.jpg|thumb|A [[nested]] caption]]
|}
* item one with {{lang|de|Wörter}} in it
:: a reply &lt;br /&gt; of some words &lt;math&gt;x^2&lt;/math&gt; here [http://x.org an external link] there
== References ==
{{reflist}} [[Category:Capitals]] __NOTOC__
</text></revision></page>"""
_LINKED = {
    "text": "Paris is in France.",
    "mentions": [{"qid": "Q90", "start": 0, "end": 5}, {"qid": "Q142", "start": 12, "end": 18}],
}
_FACT = {"sub_label": "Paris", "obj_label": "France", "sub_uri": "Q90", "obj_uri": "Q142", "tier": "often"}
_HF = {
    **{"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 64, "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    **{"hidden_dropout_prob": 0.1, "pad_token_id": 0, "type_vocab_size": 2, "initializer_range": 0.02},
}

_RESULT = {
    **{
        "task": "typing",
        "model": "m",
        "predictions": "r.predictions.jsonl.gz",
        "scoring": {"no_relation": "a"},
        "tasks": None,
    },
    "examples": {"train": 9, "test": 2},
    "splits": {"test": {"micro_f1": {"mean": 0.5, "std": 0.0, "values": [0.5, 0.5]}}},
    "baseline": {"test": {"micro_f1": 0.5}},
}
_LAMA_FIGURES: dict[str, Any] = {"p_at_1": 0.5, "p_at_10": 0.5, "mrr": 0.5, "n_facts": 2, "n_relations": 1}
_LAMA_FIGURES["majority_baseline"] = dict(_LAMA_FIGURES)
_LAMA_RESULT = {
    **{"task": "lama", "model": "m", "candidates": {"common_with": [], "n_tokens": 3}},
    "parts": {"trex": {**_LAMA_FIGURES, "micro": _LAMA_FIGURES, "uhn": None, "groups": {"tier": {"a": _LAMA_FIGURES}}}},
}
_PREDICTION = {"task": "typing", "split": "test", "index": 0, "gold": ["a"], "predicted": [["a"], []]}
_FACT = {
    **{"part": "trex", "relation": "P1", "subject": "s", "object": "o", "texts": ["t"], "tokens": 1, "rank": 1},
    "groups": {"tier": "a"},
}


def dump(draw: random.Random, _: Path) -> None:
    page = parse_page(damaged(draw, _PAGE.encode()))
    if page is not None and not page.redirect:
        article_of(page, 4, Counter())


def jsonl(draw: random.Random, _: Path) -> None:
    line = json.dumps(_LINKED | odd_object(draw, _LINKED)).encode()
    parse_linked(damaged(draw, line) if draw.random() < 0.8 else line)


def triples(draw: random.Random, folder: Path) -> None:
    lines = "".join(f"Q{n}\tP{n % 7}\tQ{n * 3 % 50}\n" for n in range(60)).encode()
    (folder / "t.txt").write_bytes(damaged(draw, lines))
    read_triples([GraphFile(folder / "t.txt")], max_malformed=draw.choice([0.0, 0.5]))


def names(draw: random.Random, folder: Path) -> None:
    lines = "".join(f"Q{n}\tname {n}\talias\n" for n in range(60)).encode()
    (folder / "n.txt").write_bytes(damaged(draw, lines))
    list(read_names(GraphFile(folder / "n.txt"), "Q", draw.choice([0.0, 0.5])))


def npy(draw: random.Random, folder: Path) -> None:
    path = folder / "x.npy"
    np.save(path, np.arange(draw.randint(0, 50), dtype=draw.choice(["int32", "uint64", "float16"])))
    path.write_bytes(damaged(draw, path.read_bytes()))
    array = load_array(path)
    if array.size < 10_000:
        array.sum()


def tar(draw: random.Random, _: Path) -> None:
    tokens, mentions = np.arange(5, 25, dtype=np.uint32), np.array([[0, 2, 7], [4, 5, 8]])
    Block.from_tar(damaged(draw, Block.from_sequences([Sequence(tokens, mentions)] * 3, 1000).to_tar("0")), "x", 1000)


def config_json(draw: random.Random, folder: Path) -> None:
    text = json.dumps(_HF | odd_object(draw, _HF)).encode()
    (folder / "config.json").write_bytes(damaged(draw, text) if draw.random() < 0.5 else text)
    load_config(folder)


def checkpoint(draw: random.Random, folder: Path) -> None:
    """Read a file of torch.save, old or new, with fairseq's arguments in it."""
    path = folder / "model.pt"
    tensors = {f"layer.{n}.weight": torch.ones(3, n + 1) for n in range(3)}
    saved = {"args": argparse.Namespace(heads=2), "model": tensors} if draw.random() < 0.5 else tensors
    torch.save(saved, path, _use_new_zipfile_serialization=draw.random() < 0.5)
    path.write_bytes(damaged(draw, path.read_bytes()))
    for tensor in read_checkpoint(path).tensors.values():
        if tensor.numel() < 10_000:
            tensor.float().sum()


def kg_file(draw: random.Random, folder: Path) -> None:
    """Read vectors of entities and relations, with their ids in the file or in tables beside it."""
    n, ids = draw.randint(1, 5), {"entity": [f"Q{n}" for n in range(5)], "relation": [f"P{n}" for n in range(5)]}
    arrays = {f"{kind}_vectors": np.ones((n, draw.choice([2, 2, 3])), draw.choice(["float32", "int8"])) for kind in ids}
    beside = draw.random() < 0.4
    if draw.random() < 0.5:
        path = folder / "vectors.npz"
        np.savez(path, **arrays, **({} if beside else {f"{kind}_ids": np.array(ids[kind][:n]) for kind in ids}))  # type: ignore[arg-type]
    else:
        path = folder / "vectors.safetensors"
        about = {} if beside else {f"{kind}_ids": "\n".join(ids[kind][:n]) for kind in ids}
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path, about)
    if beside:
        for name, kind in (("entities.tsv", "entity"), ("relations.tsv", "relation")):
            lines = "".join(f"{row}\t{ids[kind][row]}\n" for row in range(n))
            (folder / name).write_bytes(_some_damage(draw, lines))
    if draw.random() < 0.7:
        path.write_bytes(damaged(draw, path.read_bytes()))
    for named in read_kg_file(path):
        if named.vectors.numel() < 10_000:
            named.vectors.float().sum()


def ds_config(draw: random.Random, folder: Path) -> None:
    names = [*ds_keys.RULES, *ds_keys.INSTEAD, *ds_keys.SECTIONS, *ds_keys.DECIDED, *ds_keys.UNUSED]
    known = dict.fromkeys(
        [*names, "optimizer", "optimizer.params", "scheduler.type", "scheduler.params.warmup_type"], 1
    )
    text = json.dumps(odd_object(draw, known)).encode()
    (folder / "ds.json").write_bytes(damaged(draw, text) if draw.random() < 0.5 else text)
    resolve_ds_config(Config(trainer=TrainerConfig(ds_config=str(folder / "ds.json"))), 2)


def settings(draw: random.Random, folder: Path) -> None:
    text = json.dumps(odd_object(draw, flatten(Config())), ensure_ascii=draw.random() < 0.5).encode(errors="replace")
    (folder / "run.yaml").write_bytes(damaged(draw, text) if draw.random() < 0.5 else text)
    given = [f"--{draw.choice([*flatten(Config())])}={draw.choice(_ODD)}"] if draw.random() < 0.5 else []
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser)
    parse(parser, ["--config", str(folder / "run.yaml"), *given])


def lama(draw: random.Random, folder: Path) -> None:
    known = _FACT | {"masked_sentences": ["Paris is in [MASK] ."], "judgments": [{"judgment": "yes"}], "pred": "IsA"}
    template = {"relation": "P17", "template": "[X] is in [Y] .", "label": "country"}
    names = ("TREx/P17.jsonl", "Google_RE/place_of_birth_test.jsonl", "ConceptNet/test.jsonl", "Squad/test.jsonl")
    (folder / "relations.jsonl").write_bytes(_some_damage(draw, json.dumps(template | odd_object(draw, template))))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(_some_damage(draw, json.dumps(known | odd_object(draw, known))))
    read_parts(folder)


_RECORDS: dict[str, dict[str, Any]] = {
    "typing": {"sent": "Paris is big.", "start": 0, "end": 5, "labels": ["city"]},
    "tacred": {"token": ["a", "b"], "subj_start": 0, "subj_end": 0, "obj_start": 1, "obj_end": 1, "relation": "x"},
    "fewrel": {"tokens": ["a", "b"], "h": ["a", "Q1", [[0]]], "t": ["b", "Q2", [[1]]]},
    "ernie": {"text": "a b", "label": "x", "ents": [["Q1", 0, 1, 1.0], ["Q2", 2, 3, 1.0]]},
}


def tasks(draw: random.Random, folder: Path) -> None:
    kind = draw.choice([*_RECORDS])
    for split in ("train", "dev", "test"):
        records: Any = [_RECORDS[kind] | (odd_object(draw, _RECORDS[kind]) if draw.random() < 0.3 else {})]
        text = json.dumps({"P1": records} if kind == "fewrel" else records)
        (folder / f"{split}.json").write_bytes(_some_damage(draw, text))
    (read_typing if kind == "typing" else read_relation)(folder)


def glue(draw: random.Random, folder: Path) -> None:
    name = draw.choice(["CoLA", "MRPC", "STS-B"])
    lines = {"CoLA": "gj04\t1\t\tGood.\n", "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta\tb\n"}
    lines["STS-B"] = "sentence1\tsentence2\tscore\na\tb\t1.5\n"
    (folder / name).mkdir(exist_ok=True)
    for split in ("train", "dev"):
        text = (
            lines[name].replace("1.5", str(draw.choice(_ODD)).replace("\ud800", ""))
            if draw.random() < 0.3
            else lines[name]
        )
        (folder / name / f"{split}.tsv").write_bytes(_some_damage(draw, text))
    for task in glue_tasks(folder):
        read_glue(folder, task)


def results(draw: random.Random, folder: Path) -> None:
    """Compare a result with itself, of fine-tuning or LAMA, with two predictions beside it."""
    result, record = draw.choice([(_RESULT, _PREDICTION), (_LAMA_RESULT, _FACT)])
    changed = result | odd_object(
        draw, dict.fromkeys([*result, *(f"{key}.{draw.choice([*record])}" for key in result)])
    )
    lines = [record | (odd_object(draw, record) if draw.random() < 0.3 else {}) | {"index": at} for at in range(2)]
    for name, content in (
        ("r.json", json.dumps(changed if draw.random() < 0.7 else result)),
        ("r.predictions.jsonl.gz", "".join(json.dumps(line) + "\n" for line in lines)),
    ):
        data = content.encode()
        (folder / name).write_bytes(damaged(draw, data) if draw.random() < 0.3 else data)
    table = compare_models(find_models([f"a={folder / 'r.json'}", f"b={folder / 'r.json'}"]), None, 100, 1, True)
    (to_html(table) + to_markdown(table)).encode()


def _some_damage(draw: random.Random, text: str) -> bytes:
    return damaged(draw, text.encode()) if draw.random() < 0.3 else text.encode()


_READERS = (
    dump,
    jsonl,
    triples,
    names,
    npy,
    tar,
    config_json,
    checkpoint,
    kg_file,
    ds_config,
    settings,
    lama,
    tasks,
    glue,
    results,
)
KINDS: dict[str, Callable[[random.Random, Path], None]] = {reader.__name__: reader for reader in _READERS}


# --- The run ---
class Forbidden(BaseException):
    """Something that no reader may do."""


class Guard:
    """Raises where a reader starts a program, unpickles, connects, or writes outside `folder`."""

    def __init__(self, folder: Path) -> None:
        self.active, self._folder = False, str(folder)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in _FORBIDDEN or (written and not str(arguments[0]).startswith(self._folder)):
            self.active = False
            raise Forbidden(f"{event} {arguments[0]!r}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.active = True
        signal.alarm(LIMIT_S)
        try:
            yield
        finally:
            signal.alarm(0)
            self.active = False


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Forbidden(f"more than {LIMIT_S} seconds")


def finding(kind: str, number: int, seed: int, folder: Path, guard: Guard) -> str | None:
    """Read one input; return what is wrong with how that went, None if nothing."""
    draw = random.Random(f"{seed} {kind} {number}")
    try:
        with guard.watching():
            KINDS[kind](draw, folder)
    except UserError as error:
        return f"a message of several lines: {str(error)!r:.200}" if "\n" in str(error) else None
    except (Exception, Forbidden):
        return traceback.format_exc()
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--inputs", type=int, default=10_000, help="in all kinds together (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), default=list(KINDS), metavar="KIND")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGALRM, _too_long)
    logging.disable(logging.WARNING)  # what readers leave out
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        guard = Guard(Path(name))
        numbers = range(options.first, options.first + -(-options.inputs // len(options.only)))
        for number in track(numbers, "fuzz", total=len(numbers)):
            for kind in options.only:
                if problem := finding(kind, number, options.seed, Path(name), guard):
                    found[kind] += 1
                    print(f"--- {kind} {number}, seed {options.seed}\n{problem}")
    print(f"{len(numbers) * len(options.only):,} inputs, {found.total()} findings {dict(found) or ''}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
