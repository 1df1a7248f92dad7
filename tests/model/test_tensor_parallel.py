"""A model in parts computes what it does whole: losses, gradients, probabilities; on gloo ranks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_distributed_test
from trelm_ds.config import ModelConfig
from trelm_ds.distributed import connect, disconnect
from trelm_ds.model import (
    Batch,
    EncoderConfig,
    KnowledgePath,
    MaskedLanguageModel,
    answer_probabilities,
    join,
    load_pretrained,
    make_tensor_parallel,
    partition_of,
    save_pretrained,
)
from trelm_ds.model.batch import StepTables
from trelm_ds.tensor_ranks import split

WORDS, TOKENS = 51, 21  # neither is even
PATH = torch.tensor([0, 1, 5])  # all of the first rank's neurons


class Case(NamedTuple):
    """What a model is built and fed with."""

    settings: dict[str, Any] = {}  # noqa: RUF012
    routed: bool = False
    sequence_parallel: bool = False
    frozen: bool = False


CASES = {
    "plain": Case(),
    "checkpointed": Case({"activation_checkpointing": True}),
    "routed": Case(routed=True),
    "sequence parallel": Case(sequence_parallel=True),
    "sequence parallel, routed": Case(sequence_parallel=True, routed=True),
    "feed-forward only": Case(frozen=True, routed=True),
    "feed-forward only, sequence parallel": Case(frozen=True, routed=True, sequence_parallel=True),
}


def build(case: Case) -> MaskedLanguageModel:
    torch.manual_seed(1)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    settings = ModelConfig(**small, max_position_embeddings=16, hidden_dropout_prob=0.0, **case.settings)
    sizes = EncoderConfig.from_settings(settings, WORDS, 0)
    model = MaskedLanguageModel(sizes, settings.activation_checkpointing)
    torch.nn.init.normal_(model.head.bias)
    return model.train()


def batch() -> Batch:
    """Two documents, whose fifth token is padding: its embedding learns nothing from being looked up."""
    ids = torch.randint(1, WORDS, (TOKENS,), generator=torch.Generator().manual_seed(3))
    ids[4] = 0
    positions = torch.tensor([1, 5, 9, 17, 20])
    packed = Batch.of_documents(ids, torch.tensor([0, 8, TOKENS], dtype=torch.int32), 13)
    return packed._replace(mlm_positions=positions, mlm_labels=ids[positions])


class Outcome(NamedTuple):
    """Of one rank."""

    loss: float
    right: int
    states: Tensor
    gradients: dict[str, Tensor]
    probabilities: Tensor
    by_state: Tensor
    logits: Tensor


def outcome(model: MaskedLanguageModel, case: Case) -> Outcome:
    """Pass forward and backward; then as attribution does, by the states of a few tokens."""
    if case.frozen:
        model.encoder.requires_grad_(False)
        model.head.requires_grad_(False)
    for layer in model.encoder.blocks:
        ffn = layer.feed_forward
        for weight in (ffn.keys, ffn.key_bias, ffn.values):
            weight.requires_grad_(True)
        if case.routed:
            own = PATH[(ffn.own.start <= PATH) & (ffn.own.stop > PATH)] - ffn.own.start
            ffn.path = KnowledgePath(own)
    found = model(batch())
    found.losses["mlm"].backward()
    states = found.states[:3].clone().requires_grad_()
    tables = StepTables(torch.zeros(0, 32), torch.zeros(0, 32), 0.0, torch.zeros(0, dtype=torch.int64), None, 1.0)
    labels, bias = torch.tensor([0, 30, WORDS - 1]), model.head.bias
    probabilities = answer_probabilities(states, model.encoder.embeddings.word, labels, tables, bias)
    by_state = torch.autograd.grad(probabilities.sum(), states)[0]
    with torch.no_grad():
        logits = model.logits(found.states[:2])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    loss, right = found.losses["mlm"].item(), int(found.correct["mlm"])
    return Outcome(loss, right, found.states, gradients, probabilities.detach(), by_state, logits)


def in_parts(degree: int, names: list[str]) -> list[bytes]:
    """On each rank; pickled, because there are more tensors than a process may share."""
    torch.cuda.current_device = lambda: torch.device("cpu")  # where megatron-core exchanges tokens
    ranks = split(connect(), degree)
    assert ranks.tensor is not None
    outcomes = []
    for name in names:
        model = build(CASES[name])
        make_tensor_parallel(model, ranks.tensor.group, CASES[name].sequence_parallel)
        outcomes.append(pickle.dumps(outcome(model, CASES[name])))
    disconnect()
    return outcomes


@pytest.mark.parametrize(("degree", "names"), [(2, list(CASES)), (4, ["plain", "sequence parallel, routed"])])
def test_as_the_whole_model(degree: int, names: list[str]) -> None:
    by_rank = run_distributed_test(in_parts, degree, degree, names)
    for place, name in enumerate(names):
        parts: list[Outcome] = [pickle.loads(outcomes[place]) for outcomes in by_rank]
        whole = outcome(build(CASES[name]), CASES[name])
        assert whole.gradients.keys() == parts[0].gradients.keys(), name
        for part in parts:
            assert part.loss == pytest.approx(whole.loss, rel=1e-6), name
            assert part.right == whole.right
            for field in ("states", "probabilities", "by_state", "logits"):
                torch.testing.assert_close(getattr(part, field), getattr(whole, field), rtol=1e-5, atol=1e-5)
        for parameter, gradient in whole.gradients.items():
            every = [part.gradients[parameter] for part in parts]
            if (partition := partition_of(parameter)) is not None:
                every = [join(every, partition, gradient.shape[partition.dimension])]
            for one in every:  # replicated ones are whole on all ranks
                torch.testing.assert_close(one, gradient, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


def mapped() -> tuple[Tensor, Tensor, Tensor]:
    from trelm_ds.model.regions import copy_to_region, reduce_from_region

    ranks = split(connect(), 2)
    assert ranks.tensor is not None
    own = torch.arange(6.0).view(2, 3) + ranks.rank
    summed = reduce_from_region(own.t(), ranks.tensor.group)
    states = torch.ones(3, 2, requires_grad=True)
    copy_to_region(states, ranks.tensor.group).backward(own.t())
    assert states.grad is not None
    columns = torch.ones(2, 3).t().requires_grad_()
    (copy_to_region(columns, ranks.tensor.group) * own.t()).sum().backward()
    assert columns.grad is not None
    disconnect()
    return summed, states.grad, columns.grad


def test_tensors_that_are_not_contiguous_are_summed() -> None:
    """megatron-core 0.16.1 by itself returns them as they are, forward and backward."""
    expected = 2 * torch.arange(6.0).view(2, 3).t() + 1
    for found in run_distributed_test(mapped, 2):
        for each in found:
            assert torch.equal(each, expected)


def dropped(on_heads: float) -> list[Tensor]:
    """The last states twice from the same seed, and once from another."""
    ranks = split(connect(), 2)
    assert ranks.tensor is not None
    case = Case({"attention_probs_dropout_prob": on_heads})
    model = build(case)
    make_tensor_parallel(model, ranks.tensor.group)
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(model(batch()).states)
    numbers = torch.rand(1)  # what comes next is the same on all ranks
    disconnect()
    return [*found, numbers]


def test_dropout_of_attention_follows_from_the_seed() -> None:
    one, other = run_distributed_test(dropped, 2, 0.5)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one[0], one[2])


def loaded(folder: Path, degree: int) -> dict[str, Tensor]:
    ranks = split(connect(), degree)
    assert ranks.tensor is not None
    weights = load_pretrained(folder, group=ranks.tensor.group).state_dict()
    disconnect()
    return {name: weight.clone() for name, weight in weights.items()}


def test_a_folder_is_read_in_parts(tmp_path: Path) -> None:
    model = build(Case())
    save_pretrained(model, model.config, tmp_path / "model", tokenizer_dir=None)
    parts = run_distributed_test(loaded, 2, tmp_path / "model", 2)
    for name, whole in model.state_dict().items():
        every = [part[name] for part in parts]
        if (partition := partition_of(name)) is not None:
            every = [join(every, partition, whole.shape[partition.dimension])]
        assert all(torch.equal(one, whole) for one in every), name


def refused() -> str:
    ranks = connect()
    assert dist.is_initialized()
    try:
        split(ranks, 2)
    except ValueError as error:
        return str(error)
    finally:
        disconnect()
    return ""


def test_a_degree_that_does_not_divide_the_ranks() -> None:
    for message in run_distributed_test(refused, 3):
        assert message.startswith("model.tensor_parallel: 2 does not divide the 3 processes of a node;")
        assert "a multiple of 2 there (torchrun --nproc-per-node)" in message
