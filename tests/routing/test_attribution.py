"""Attribution against the paper read slowly: the whole model, one layer, one node, one fact at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from trelm_ds.model import (
    Assessing,
    AssessingBatch,
    Batch,
    EncoderConfig,
    Injected,
    KnowledgeItems,
    MaskedLanguageModel,
    ProductDecoder,
    StepTables,
)
from trelm_ds.routing import (
    QUADRATURES,
    NeuronScores,
    Quadrature,
    attribute,
    frozen,
    gauss_legendre,
    no_scores,
    right_riemann,
)
from trelm_ds.routing.attribution import _node_gradients, _prefix, _targets, packed_layout

LENGTHS = [9, 5, 12, 7]  # tokens of the documents, one fact each
SPANS = [(6, 8), (2, 3), (9, 11), (1, 2)]  # decode positions in each: the masks, or the mention
ANSWERS = [2, 1, 2, 1]  # tokens of each answer


def sizes(architecture: str = "bert", layers: int = 3) -> EncoderConfig:
    return EncoderConfig(
        architecture=architecture,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        type_vocab_size=2,
        hidden_act="relu" if layers == 4 else "gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
        pad_token_id=1 if architecture == "roberta" else 0,
        initializer_range=0.3,
    )


def build(config: EncoderConfig, product: bool = False) -> MaskedLanguageModel:
    torch.manual_seed(3)
    model = MaskedLanguageModel(config)
    model.objectives["cka"] = Assessing(ProductDecoder(config, 2) if product else None)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


class Given(NamedTuple):
    """Documents with facts, what the step has looked up, and what Eq. 7 makes of both."""

    batch: Batch
    tables: StepTables
    injected: Injected


def documents(model: MaskedLanguageModel, candidates: int, log_q: bool = False) -> Given:
    torch.manual_seed(5)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    spans = torch.tensor(SPANS) + bounds[:-1, None]
    positions = torch.cat([torch.arange(first, last) for first, last in spans.tolist()])
    fact = torch.repeat_interleave(torch.arange(4), torch.tensor(ANSWERS))
    product = model.decoder is not None
    size = model.config.hidden_size
    facts = AssessingBatch(
        labels=torch.randint(5, 40, (6,)),
        fact=fact,
        place=torch.tensor([0, 1, 0, 0, 1, 0]),
        positions=positions[:0] if product else positions,
        spans=spans if product else spans[:0],
        relations=torch.tensor([3, 0, 2, 1]) if product else positions[:0],
        inverse=torch.tensor([False, True, True, False]),
        routed=torch.ones(4, dtype=torch.bool),
    )
    tables = StepTables(
        vectors=torch.randn(6, size),
        memories=torch.randn(2, size),
        memory_lambda=0.4,
        candidates=torch.randint(5, 40, (candidates,)),
        log_counts=torch.randn(40) if log_q else None,
    )
    # A mention with a triple and no memory, a word with memory.
    items = KnowledgeItems(
        memory=torch.tensor([-1, 1]),
        window=torch.tensor([[1, 3], [10, 13]]),
        cls=torch.tensor([0, 9]),
        new_context=torch.tensor([False, True]),
        entity=torch.tensor([4, -1]),
        relation=torch.tensor([5, -1]),
        sign=torch.tensor([-1.0, 0.0]),
        token_rows=torch.tensor([1, 11]),
        token_items=torch.tensor([0, 1]),
    )
    added = torch.stack([tables.vectors[4] - tables.vectors[5], 0.2 * tables.memories[1]])
    batch = Batch.of_documents(torch.randint(5, 40, (sum(LENGTHS),)), bounds, max(LENGTHS))
    batch = batch._replace(items=items, objectives={"cka": facts})
    return Given(batch, tables, Injected(items.token_rows, items.token_items, torch.tensor([0.0, 0.6]), added))


def view_of(model: MaskedLanguageModel) -> MaskedLanguageModel:
    return frozen(model, {name: weight.detach() for name, weight in model.named_parameters()})


@contextmanager
def scaled_memory(model: MaskedLanguageModel, index: int, rows: Tensor, factor: Tensor) -> Iterator[dict[str, Tensor]]:
    """Multiplies the activation of a layer at some rows [R] by `factor` [R, F] or less; what it was is in "v"."""
    memory, seen = model.encoder.layers[index].feed_forward, {}

    def forward(hidden: Tensor) -> Tensor:
        v = memory.activation(hidden @ memory.keys.t() + memory.key_bias)
        seen["v"] = v[rows].detach()
        seen["scaled"] = (seen["v"] * factor).requires_grad_()
        return v.index_copy(0, rows, seen["scaled"]) @ memory.values + memory.value_bias

    memory.forward = forward  # type: ignore[method-assign]
    yield seen
    del memory.forward


def literal_probability(model: MaskedLanguageModel, given: Given, fact: int) -> Tensor:
    """Eq. 9: mean over the answer's tokens of the softmax against the candidates, token by token."""
    batch, tables = given.batch, given.tables
    facts = batch.objectives["cka"]
    hidden = model.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, given.injected)
    words = model.encoder.embeddings.word.weight
    probabilities = []
    for n in (facts.fact == fact).nonzero()[:, 0].tolist():
        if model.decoder is None:
            state = model.head.transform(hidden[facts.positions[n]])
        else:
            first, last = facts.spans[fact].tolist()
            state = hidden[first:last].mean(0)
            relation = tables.vectors[facts.relations[fact]]
            relation = relation / relation.square().mean().sqrt()
            matrix = model.decoder.head if facts.inverse[fact] else model.decoder.tail
            for _ in range(int(facts.place[n]) + 1):
                state = torch.tanh(matrix.weight @ (relation * state))
        true, scores = int(facts.labels[n]), []
        for word in [true, *(tables.candidates.tolist() or [w for w in range(len(words)) if w != true])]:
            correction = 0.0 if tables.log_counts is None else tables.log_counts[word]
            if model.decoder is None and (tables.log_counts is not None or not len(tables.candidates)):
                correction = correction - model.head.bias[word]
            scores.append(words[word] @ state - correction)
        competing = [scores[0]] + [
            score
            for word, score in zip(tables.candidates.tolist() or range(len(scores) - 1), scores[1:], strict=True)
            if not len(tables.candidates) or word != true
        ]
        probabilities.append(torch.softmax(torch.stack(competing), 0)[0])
    return torch.stack(probabilities).mean()


def rows_of(given: Given, fact: int) -> Tensor:
    first, last = (torch.tensor(SPANS[fact]) + given.batch.cu_seqlens[fact]).tolist()
    return torch.arange(first, last)


def literal_scores(model: MaskedLanguageModel, given: Given, quadrature: Quadrature) -> Tensor:
    """Eq. 11 by the whole model's autograd, one layer, fact and node at a time: [L, F]."""
    scores = torch.zeros(len(model.encoder.layers), model.config.intermediate_size)
    for index in range(len(scores)):
        for fact in range(len(LENGTHS)):
            rows, mean = rows_of(given, fact), 0.0
            for alpha, weight in zip(*quadrature, strict=True):
                with scaled_memory(model, index, rows, torch.tensor(alpha)) as seen:
                    probability = literal_probability(model, given, fact)
                mean = mean + weight * torch.autograd.grad(probability, seen["scaled"])[0]
            scores[index] += (seen["v"] * mean).clamp(min=0).sum(0)
    return scores


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.max() > 0
    assert (found - expected).abs().max() <= 1e-4 * expected.max()


@pytest.mark.parametrize("product", [False, True], ids=["query", "product"])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("quadrature", ["gauss3", "right20"])
def test_equals_the_whole_model_s_autograd(architecture: str, product: bool, quadrature: str) -> None:
    model = build(sizes(architecture), product)
    given, rule = documents(model, candidates=0 if architecture == "bert" else 15), QUADRATURES[quadrature]
    found = attribute(view_of(model), *given[:2], rule)
    close(found.neurons, literal_scores(model.eval(), given, rule))
    assert found.facts == 4


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_any_depth_and_log_q(layers: int) -> None:
    model = build(sizes(layers=layers))
    given = documents(model, candidates=15, log_q=True)
    close(
        attribute(view_of(model), *given[:2], QUADRATURES["gauss3"]).neurons,
        literal_scores(model.eval(), given, QUADRATURES["gauss3"]),
    )


def test_nodes_together_or_one_after_another_and_upper_layers_only() -> None:
    model = build(sizes())
    given, rule = documents(model, candidates=15), QUADRATURES["right20"]
    whole = attribute(view_of(model), *given[:2], rule)
    for max_tokens in (1, 7 * sum(LENGTHS)):
        torch.testing.assert_close(attribute(view_of(model), *given[:2], rule, max_tokens=max_tokens), whole)
    torch.testing.assert_close(attribute(view_of(model), *given[:2], rule, first_layer=2).neurons, whole.neurons[2:])


@pytest.mark.parametrize("product", [False, True], ids=["query", "product"])
def test_completeness(product: bool) -> None:
    """Over all neurons and positions, Attr adds up to P(1) - P(0)."""
    model = build(sizes(), product)
    given, rule = documents(model, candidates=15), gauss_legendre(24)
    view = view_of(model)
    batch, tables = given.batch, given.tables
    layout = packed_layout(batch.cu_seqlens, batch.max_seqlen, sum(LENGTHS))
    targets = _targets(batch, batch.objectives["cka"])
    with torch.no_grad():
        attended, outputs = _prefix(view, batch, tables, layout, targets)
    everywhere = torch.cat([rows_of(given, fact) for fact in range(4)])
    for index, layer in enumerate(view.encoder.layers):
        gradients = _node_gradients(
            view, batch, tables, targets, index, attended[index], outputs[index], torch.tensor(rule.nodes)
        )
        memory = layer.feed_forward
        product_ = memory.activation(attended[index] @ memory.keys.t() + memory.key_bias) @ memory.values
        total = (torch.tensor(rule.weights)[:, None, None] * gradients * product_).sum()
        ends = []
        for alpha in (0.0, 1.0):
            with scaled_memory(view, index, everywhere, torch.tensor(alpha)), torch.no_grad():
                ends.append(sum(literal_probability(view, given, fact) for fact in range(4)))
        assert total.item() == pytest.approx((ends[1] - ends[0]).item(), rel=0.01)


def test_neurons_alone_rank_alike() -> None:
    """Eq. 10 read literally scales one neuron and leaves the others: it agrees on which matter."""
    model = build(sizes(layers=2)).eval()
    given, rule = documents(model, candidates=15), gauss_legendre(8)
    alone = torch.zeros(2, 24)
    for index in range(2):
        for fact in range(4):
            rows = rows_of(given, fact)
            for neuron in range(24):
                mean = 0.0
                for alpha, weight in zip(*rule, strict=True):
                    factor = torch.ones(24)
                    factor[neuron] = alpha
                    with scaled_memory(model, index, rows, factor) as seen:
                        probability = literal_probability(model, given, fact)
                    mean = mean + weight * torch.autograd.grad(probability, seen["scaled"])[0][:, neuron]
                alone[index, neuron] += (seen["v"][:, neuron] * mean).clamp(min=0).sum()
    found = attribute(view_of(model), *given[:2], rule).neurons
    for one, other in zip(found, alone, strict=True):
        assert len(set(one.topk(6)[1].tolist()) & set(other.topk(6)[1].tolist())) >= 4


def test_coordinates() -> None:
    model = build(sizes())
    given, rule = documents(model, candidates=15), QUADRATURES["gauss3"]
    found = attribute(view_of(model), *given[:2], rule, with_coordinates=True)
    plain = attribute(view_of(model), *given[:2], rule)
    assert torch.equal(found.neurons, plain.neurons)
    assert not plain.inputs.any()
    assert not plain.outputs.any()
    model.eval()
    for index, layer in enumerate(model.encoder.layers):
        memory = layer.feed_forward
        expected_out, expected_in = torch.zeros(16), torch.zeros(16)
        for fact in range(4):
            rows, mean, inputs = rows_of(given, fact), 0.0, []
            handle = memory.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
            literal_probability(model, given, fact)
            handle.remove()
            for alpha, weight in zip(*rule, strict=True):
                with scaled_memory(model, index, rows, torch.tensor(alpha)) as seen:
                    probability = literal_probability(model, given, fact)
                mean = mean + weight * torch.autograd.grad(probability, seen["scaled"], retain_graph=True)[0]
            x = inputs[0][rows].detach().requires_grad_()
            v = memory.activation(x @ memory.keys.t() + memory.key_bias)
            by_input = torch.autograd.grad((v * mean).sum(), x)[0]
            expected_in += (x * by_input).detach().clamp(min=0).sum(0)
            # P's gradient by y, from that by v = y-gradient values^T, by least squares: values [F, D] has full rank D
            by_output = torch.linalg.lstsq(memory.values, mean.t()).solution.t()
            expected_out += ((seen["v"] @ memory.values) * by_output).detach().clamp(min=0).sum(0)
        close(found.inputs[index], expected_in)
        assert (found.outputs[index] - expected_out).abs().max() <= 1e-3 * expected_out.max()


def test_the_view_shares_weights_and_leaves_the_model_alone() -> None:
    model = build(sizes()).train()
    view = view_of(model)
    assert view.head.bias.data_ptr() == model.head.bias.data_ptr()
    assert not any(parameter.requires_grad for parameter in view.parameters())
    attribute(view, *documents(model, candidates=15)[:2], QUADRATURES["gauss3"])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.training
    with torch.no_grad():
        model.head.bias.add_(1)
    assert torch.equal(view.head.bias, model.head.bias)


def test_bf16_ranks_like_fp32() -> None:
    model = build(sizes())
    given, rule = documents(model, candidates=15), QUADRATURES["gauss3"]
    exact = attribute(view_of(model), *given[:2], rule).neurons
    half = attribute(view_of(model.bfloat16()), *given[:2], rule).neurons
    assert half.dtype == torch.float32
    for one, other in zip(exact, half, strict=True):
        assert len(set(one.topk(6)[1].tolist()) & set(other.topk(6)[1].tolist())) >= 5


def test_quadratures() -> None:
    rule = right_riemann(4)
    assert rule == Quadrature((0.25, 0.5, 0.75, 1.0), (0.25,) * 4)
    gauss = gauss_legendre(3)
    for power in range(6):
        integral = sum(w * x**power for x, w in zip(*gauss, strict=True))
        assert integral == pytest.approx(1 / (power + 1))
    assert len(QUADRATURES["right20"].nodes) == 20
    assert QUADRATURES["gauss3"] == gauss


def test_nothing_scored() -> None:
    scores = no_scores(build(sizes()), 1, torch.device("cpu"))
    assert isinstance(scores, NeuronScores)
    assert scores.neurons.shape == (2, 24)
    assert scores.inputs.shape == scores.outputs.shape == (2, 16)
