"""Eq. 2 and both decoders against literal references."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.test_injection import model
from tests.model.test_masked_lm import make_config
from tests.model.tiny_models import make_documents, pack_batch
from trelm_ds.model import (
    Assessing,
    AssessingBatch,
    MaskedLanguageModel,
    MentionDecoder,
    ProductDecoder,
    StepTables,
)
from trelm_ds.model.assessing import contrastive_loss

CANDIDATES = [11, 12, 40, 12, 90]  # a token may be drawn twice


def facts() -> AssessingBatch:
    """Three facts with answers of 1, 3 and 2 tokens about three documents of 6, 11 and 3 tokens."""
    return AssessingBatch(
        labels=torch.tensor([11, 5, 40, 12, 7, 7]),
        fact=torch.tensor([0, 1, 1, 1, 2, 2]),
        place=torch.tensor([0, 0, 1, 2, 0, 1]),
        positions=torch.tensor([3, 8, 9, 10, 17, 18]),
        spans=torch.tensor([[1, 3], [7, 8], [17, 20]]),
        relations=torch.tensor([2, 0, 3]),
        inverse=torch.tensor([False, True, False]),
        routed=torch.zeros(3, dtype=torch.bool),
    )


def tables(candidates: list[int] = CANDIDATES, log_counts: torch.Tensor | None = None) -> StepTables:
    return StepTables(
        vectors=torch.randn(4, 32, generator=torch.Generator().manual_seed(2)),
        memories=torch.zeros(0, 32),
        memory_lambda=0.0,
        candidates=torch.tensor(candidates, dtype=torch.long),
        log_counts=log_counts,
    )


def literal_loss(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    against: StepTables,
    bias: torch.Tensor | None = None,
) -> tuple[float, int]:
    """Eq. 2 term by term: -log exp f(h, y) / (exp f(h, y) + sum over drawn y' != y of exp f(h, y'))."""
    total, correct = 0.0, 0
    candidates = against.candidates.tolist() or list(range(len(weight)))

    def f(state: torch.Tensor, token: int) -> float:
        score = float(sum(a * b for a, b in zip(state.tolist(), weight[token].tolist(), strict=True)))
        score += float(bias[token]) if bias is not None else 0.0
        return score - (float(against.log_counts[token]) if against.log_counts is not None else 0.0)

    for state, label in zip(states, labels.tolist(), strict=True):
        true = math.exp(f(state, label))
        others = [math.exp(f(state, token)) for token in candidates if token != label]
        total += -math.log(true / (true + sum(others)))
        correct += true > max(others)
    return total, correct


@pytest.mark.parametrize("candidates", [CANDIDATES, []])
@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_loss(candidates: list[int], log_q: bool, biased: bool, dtype: torch.dtype, tolerance: float) -> None:
    if log_q and not candidates:
        return
    word = model().encoder.embeddings.word.to(dtype)
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    log_counts = torch.linspace(-3, 0, 97) if log_q else None
    labels, against = facts().labels, tables(candidates, log_counts)
    bias = torch.linspace(-2, 2, 97).to(dtype) if biased else None
    loss, correct = contrastive_loss(states, word, labels, against, bias)
    expected, hits = literal_loss(states.float(), word.weight.detach().float(), labels, against, bias)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    assert correct.item() == hits


def test_an_answer_does_not_compete_with_itself() -> None:
    word = model().encoder.embeddings.word
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    loss, correct = contrastive_loss(states, word, torch.full((6,), 11), tables([11]))
    assert loss.item() == 0
    assert correct.item() == 6


@pytest.mark.parametrize(
    ("against", "biased"),
    [(tables(), False), (tables([]), True), (tables(log_counts=torch.linspace(-3, 0, 97)), True)],
)
def test_decoder_query_reads_the_masks_through_the_head(against: StepTables, biased: bool) -> None:
    ours, asked = model(), facts()
    ours.objectives["cka"] = Assessing()
    assert ours.decoder is None
    batch = pack_batch(make_documents([6, 11, 3]))._replace(objectives={"cka": asked})
    output = ours(batch, against)
    states = []
    for position in asked.positions.tolist():
        dense = ours.head.dense.weight @ output.states[position] + ours.head.dense.bias
        gelu = dense * 0.5 * (1 + torch.erf(dense / math.sqrt(2)))
        centred = gelu - gelu.mean()
        normed = centred / torch.sqrt((centred**2).mean() + ours.head.norm.eps)
        states.append(normed * ours.head.norm.weight + ours.head.norm.bias)
    bias = ours.head.bias if biased else None
    expected, hits = literal_loss(torch.stack(states), ours.encoder.embeddings.word.weight, asked.labels, against, bias)
    assert output.losses["cka"].item() == pytest.approx(expected, rel=1e-4)
    assert output.correct["cka"].item() == hits
    assert output.losses["mlm"].item() == 0
    assert not output.states.requires_grad


def test_decoder_mention_reads_state_times_relation_through_the_head() -> None:
    ours, asked, against = model(), facts(), tables([])
    ours.objectives["cka"] = Assessing(MentionDecoder())
    batch = pack_batch(make_documents([6, 11, 3]))._replace(objectives={"cka": asked})
    output = ours(batch, against)
    expected = 0.0
    for label, position, fact in zip(asked.labels, asked.positions, asked.fact, strict=True):
        relation = against.vectors[asked.relations[fact]]
        state = output.states[position] * relation / relation.square().mean().sqrt()
        expected -= ours.logits(state[None])[0].log_softmax(0)[label].item()
    assert output.losses["cka"].item() == pytest.approx(expected, rel=1e-4)
    assert ours.decoder is None  # which attribution would follow


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_decoder_product(dtype: torch.dtype, tolerance: float) -> None:
    decoder, asked = ProductDecoder(make_config(), max_places=3), facts()
    vectors = tables().vectors
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(4))
    actual = decoder.to(dtype)(hidden.to(dtype), asked, vectors)
    for row, (fact, place) in enumerate(zip(asked.fact.tolist(), asked.place.tolist(), strict=True)):
        first, last = asked.spans[fact].tolist()
        state = sum(hidden[p] for p in range(first, last)) / (last - first)  # h^0: mean over the mention
        matrix = (decoder.head if asked.inverse[fact] else decoder.tail).weight.float()
        relation = vectors[asked.relations[fact]] / vectors[asked.relations[fact]].square().mean().sqrt()
        for _ in range(place + 1):
            state = torch.tanh(matrix @ (relation * state))
        torch.testing.assert_close(actual[row].float(), state, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("candidates", [CANDIDATES, []])
def test_no_fact_gives_zero_loss_and_zero_gradients(product: bool, candidates: list[int]) -> None:
    """Other ranks may have facts where this one has none; every parameter must still get its gradient."""
    ours = MaskedLanguageModel(make_config())
    ours.objectives["cka"] = Assessing(ProductDecoder(make_config(), 3) if product else None)
    assert (ours.decoder is not None) == product
    none = AssessingBatch(*(tensor[:0] for tensor in facts()))
    batch = pack_batch(make_documents([6]))._replace(objectives={"cka": none})
    assert batch.targets == {"mlm": 0, "cka": 0}
    output = ours(batch, tables(candidates)._replace(vectors=torch.zeros(0, 32)))
    (output.losses["mlm"] + output.losses["cka"]).backward()
    assert output.losses["cka"].item() == 0
    assert output.correct["cka"].item() == 0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() == 0, name


def test_gradients_reach_both_ends() -> None:
    """Eq. 2 pulls the states towards the answers' embeddings and pushes the candidates' away."""
    word = model().encoder.embeddings.word
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    contrastive_loss(states, word, facts().labels, tables())[0].backward()
    touched = word.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted({5, 7, 11, 12, 40, 90})
    assert (states.grad.abs().sum(1) > 0).all()
