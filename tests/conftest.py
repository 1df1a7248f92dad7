"""Fixtures for all rooms: tiny datasets, with and without knowledge, the shared development data, a process group."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trelm_ds import log

if TYPE_CHECKING:
    from trelm_ds.distributed import Ranks

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' ranks share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: kernels run on the CPU
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # gloo ranks on the CPU, also where there is a GPU

# What `nohup` or a background job of a shell has ignored, every process of the tests would ignore as well.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

Once = Callable[[str, Callable[[Path], object]], Path]
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PEOPLE = [f"Person{n:02d}" for n in range(40)]
CITIES = [f"City{n:02d}" for n in range(12)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that no worker is left with one when the others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log goes to stderr as in the program, and caplog hears it as well."""
    log.setup()
    monkeypatch.setattr(log.logger, "propagate", True)
    log.info_once.cache_clear()
    log.warning_once.cache_clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the development data folder ../shared/data is not here")
    return SHARED_DATA


def write_corpus(folder: Path, documents: int = 400, seed: int = 0) -> None:
    """Linked JSONL `corpus.jsonl` and the folder `wikidata5m`: people who live in cities."""
    draw = random.Random(seed)
    graph = folder / "wikidata5m"
    graph.mkdir(parents=True)
    qid = {name: f"Q{number}" for number, name in enumerate([*PEOPLE, *CITIES], 1)}
    home = {person: draw.choice(CITIES) for person in PEOPLE}
    lines = []
    for _ in range(documents):
        person = draw.choice(PEOPLE)
        text = f"{person} lives in {home[person]}" + draw.choice([".", " and likes it.", " near the river, they say."])
        spans = [(text.index(name), text.index(name) + len(name), qid[name]) for name in (person, home[person])]
        mentions = [{"qid": entity, "start": start, "end": end} for start, end, entity in spans]
        lines.append(json.dumps({"text": text, "mentions": mentions}))
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    triples = "".join(f"{qid[person]}\tP551\t{qid[city]}\n" for person, city in home.items())
    (graph / "wikidata5m_all_triplet.txt").write_text(triples)
    (graph / "wikidata5m_entity.txt").write_text("".join(f"{number}\t{name}\n" for name, number in qid.items()))
    (graph / "wikidata5m_relation.txt").write_text("P551\tresidence\n")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder that many tests read and none writes into, once for all of pytest-xdist's workers."""
    from trelm_ds.files import waiting_lock

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with waiting_lock(base / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # another worker may have failed in the middle
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_corpus(once: Once) -> Path:
    """Folder with corpus.jsonl and wikidata5m/."""
    return once("tiny_corpus", write_corpus)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_corpus: Path, once: Once) -> Path:
    """A dataset of 400 short sequences (at most 32 tokens) with a trained tokenizer."""
    from trelm_ds.corpus import PrepareOptions, prepare

    def make(folder: Path) -> None:
        source, graph = tiny_corpus / "corpus.jsonl", tiny_corpus / "wikidata5m"
        prepare(PrepareOptions(source, graph, "train", folder / "tiny", 32, 300))

    return once("tiny_dataset", make) / "tiny"


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's worker processes are forked (tests/forked.py): for tests of what they read, not how they begin."""
    import tests.forked  # noqa: F401

    monkeypatch.setattr("trelm_ds.batches.loader._START", "forkserver")


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Ranks]:
    """DeepSpeed cannot join a second group in one process, so all modules share it."""
    from trelm_ds.distributed import connect, disconnect

    ranks = connect()
    yield ranks
    disconnect()


@pytest.fixture(scope="session")
def wordpiece(once: Once) -> Path:
    from tests.batches.knowledge_dataset import prepare_knowledge

    return once("wordpiece", prepare_knowledge) / "dataset"


@pytest.fixture(scope="session")
def byte_level(shared_data: Path, once: Once) -> Path:
    from tests.batches.knowledge_dataset import prepare_knowledge

    tokenizer = str(shared_data / "tokenizers" / "roberta-base")
    return once("byte_level", lambda folder: prepare_knowledge(folder, tokenizer)) / "dataset"


@pytest.fixture(params=["wordpiece", "byte_level"])
def dataset(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)
