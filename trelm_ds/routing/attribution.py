"""Which feed-forward neurons an answer comes from: integrated gradients in batches (paper 3.3, Eq. 9-11).

Scaling a layer's activation v by alpha changes nothing below it, and the layer is linear behind it:
FFN(alpha v) = alpha (v V) + b. So one forward pass is shared by all layers and nodes, a node costs the layers above
only, no gradient by a weight is ever computed, and Attr = v * ((sum over nodes of w_k dP/dy_k) V^T) takes one product
whatever the number of nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from trelm_kernels import before_activation, riemann_scores

from trelm_ds.model import (
    Encoder,
    EncoderLayer,
    Injected,
    MaskedLanguageModel,
    PackedLayout,
    Questions,
    answer_probabilities,
    packed_layout,
)
from trelm_ds.routing.quadrature import Quadrature


class Documents(NamedTuple):
    """Packed documents of T tokens with the facts asked about them; inputs of `MaskedLanguageModel` under its names.

    The decode positions, where activations are scaled, are the answers' masks (decoder query), or the rows of the
    mentions (product). A document must not hold the positions of two facts: scaled together they would not be apart.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    injected: Injected | None
    questions: Questions


class Scores(NamedTuple):
    """Sums over decode positions of max(Attr, 0), for L layers from the first that was looked at."""

    neurons: Tensor
    """float32 [L, F]: by neuron"""
    inputs: Tensor
    """float32 [L, D]: by coordinate of the feed-forward's input; zeros if not asked for"""
    outputs: Tensor
    """float32 [L, D]: by coordinate of its output; zeros if not asked for"""
    facts: Tensor
    """float32 []: how many facts"""


class _Targets(NamedTuple):
    rows: Tensor
    """[R] int64, ascending decode positions in the T tokens"""
    layout: PackedLayout
    """of the R positions in their documents"""


def frozen(model: MaskedLanguageModel, weights: dict[str, Tensor]) -> MaskedLanguageModel:
    """A model of the same sizes that shares the given weights: in eval mode, without gradients, without any hooks."""
    with torch.device("meta"):
        view = MaskedLanguageModel(model.config)
        if model.decoder is not None:
            view.decoder = type(model.decoder)(model.config, model.decoder.max_places)
    view.load_state_dict(weights, assign=True)
    return view.requires_grad_(False).eval()


def no_scores(model: MaskedLanguageModel, first_layer: int, device: torch.device) -> Scores:
    """Zeros, where there is nothing to look at."""
    config = model.config
    layers = config.num_hidden_layers - first_layer
    neurons, inputs, outputs = (
        torch.zeros(layers, size, device=device)
        for size in (config.intermediate_size, config.hidden_size, config.hidden_size)
    )
    return Scores(neurons, inputs, outputs, torch.zeros((), device=device))


def attribute(
    model: MaskedLanguageModel,
    given: Documents,
    quadrature: Quadrature,
    first_layer: int = 0,
    max_tokens: int = 16384,
    with_coordinates: bool = False,
) -> Scores:
    """Scores of all neurons of the layers from `first_layer` on (Eq. 11), with P of Eq. 9.

    P of a fact is the mean probability of its answer's tokens among the candidates of its assessing. The whole
    activation vector of a layer is scaled at the fact's decode positions, one layer at a time.

    Args:
        model: of `frozen`.
        given: documents with at least one fact.
        quadrature: nodes and weights.
        first_layer: layers below are left out.
        max_tokens: tokens of one pass at most; nodes that would not fit are looked at one after another.
        with_coordinates: whether inputs and outputs are scored too: an output coordinate by the same integral (it is
            linear in alpha), an input coordinate by the gradient that the integral's mean sends back to it.
    """
    encoder = model.encoder
    layout = packed_layout(given.cu_seqlens, given.max_seqlen, given.input_ids.numel())
    targets = _targets(given)
    with torch.no_grad():
        attended, outputs = _prefix(encoder, given, layout, targets)
    together = max(1, max_tokens // given.input_ids.numel())
    weights = torch.tensor(quadrature.weights, device=given.input_ids.device)
    found = no_scores(model, first_layer, given.input_ids.device)
    for index in range(first_layer, len(encoder.layers)):
        layer, states = encoder.layers[index], attended[index]
        assert isinstance(layer, EncoderLayer)
        gradients = torch.cat(
            [
                _node_gradients(model, given, targets, index, states, outputs[index], nodes)
                for nodes in torch.tensor(quadrature.nodes, device=weights.device).split(together)
            ]
        )
        with torch.no_grad():
            _add_scores(found, index - first_layer, layer, states, gradients, weights, with_coordinates)
    return found._replace(facts=found.facts + len(_answer_lengths(given.questions)))


def _targets(given: Documents) -> _Targets:
    questions = given.questions
    rows = questions.positions
    if len(questions.spans):
        lengths = questions.spans[:, 1] - questions.spans[:, 0]
        ends = lengths.cumsum(0)
        rows = torch.arange(int(ends[-1]), device=lengths.device)
        rows = rows + torch.repeat_interleave(questions.spans[:, 0] - (ends - lengths), lengths)
    bounds = torch.searchsorted(rows, given.cu_seqlens.long()).int()
    return _Targets(rows, packed_layout(bounds, int(bounds.diff().max()), len(rows)))


def _answer_lengths(questions: Questions) -> Tensor:
    """[F] int64."""
    return torch.bincount(questions.fact)


def _prefix(
    encoder: Encoder, given: Documents, layout: PackedLayout, targets: _Targets
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer the feed-forward's input at the targets [R, D] and the layer's output [T, D], of the last none."""
    hidden = encoder.embeddings(given.input_ids, layout.positions, given.injected)
    attended, outputs = [], []
    for layer in encoder.layers[:-1]:
        assert isinstance(layer, EncoderLayer)
        states = layer.attend(hidden, layout)
        hidden = layer.transform(states)
        attended.append(states.index_select(0, targets.rows))
        outputs.append(hidden)
    last = encoder.layers[-1]
    assert isinstance(last, EncoderLayer)
    attended.append(last.attend(hidden, layout, hidden.index_select(0, targets.rows), targets.layout))
    return attended, [*outputs, hidden[:0]]


def _node_gradients(
    model: MaskedLanguageModel,
    given: Documents,
    targets: _Targets,
    index: int,
    states: Tensor,
    output: Tensor,
    nodes: Tensor,
) -> Tensor:
    """dP/dy at each node, y the feed-forward's output at the targets: [m, R, D]."""
    layers, count = model.encoder.layers, len(nodes)
    layer = layers[index]
    assert isinstance(layer, EncoderLayer)
    memory = layer.feed_forward
    product = memory.activation(F.linear(states, memory.keys, memory.key_bias)) @ memory.values
    scaled = nodes.to(product.dtype)[:, None, None] * product + memory.value_bias
    scaled.requires_grad_()
    at_targets = layer.finish(states, scaled)
    if index + 1 < len(layers):
        # Each node has a copy of the documents, which differ from one another at the targets and above only.
        hidden = output.expand(count, -1, -1).index_copy(1, targets.rows, at_targets).flatten(0, 1)
        layout = _repeated(given.cu_seqlens, given.max_seqlen, count)
        asking_layout = _repeated(targets.layout.cu_seqlens, targets.layout.max_seqlen, count)
        rows = _shifted(targets.rows, len(output), count)
        for above in layers[index + 1 : -1]:
            hidden = above(hidden, layout)
        last = layers[-1]
        assert isinstance(last, EncoderLayer)
        at_targets = last.transform(last.attend(hidden, layout, hidden.index_select(0, rows), asking_layout))
    answered = _answer_probability(model, given.questions, at_targets.view(-1, at_targets.shape[-1]), count)
    return torch.autograd.grad(answered, scaled)[0]


def _repeated(cu_seqlens: Tensor, max_seqlen: int, count: int) -> PackedLayout:
    """The layout of `count` copies of packed documents, one after another."""
    total = cu_seqlens[-1]
    copies = torch.arange(count, device=cu_seqlens.device, dtype=cu_seqlens.dtype) * total
    bounds = torch.cat([cu_seqlens[:1], (copies[:, None] + cu_seqlens[1:]).flatten()])
    return packed_layout(bounds, max_seqlen, count * int(total))


def _shifted(rows: Tensor, total: int, count: int) -> Tensor:
    """Rows of one copy of `total` rows [n, ...] as those of all copies [count * n, ...]."""
    copies = torch.arange(count, device=rows.device) * total
    return (copies.view(-1, *[1] * rows.dim()) + rows).flatten(0, 1)


def _answer_probability(model: MaskedLanguageModel, questions: Questions, states: Tensor, count: int) -> Tensor:
    """Sum of P (Eq. 9) over facts and copies, from the states [m * R, D] at the decode positions."""
    lengths = _answer_lengths(questions)
    share = (1 / lengths)[questions.fact]  # P of a fact is the mean over its answer's tokens
    repeated = questions._replace(labels=questions.labels.repeat(count))
    if model.decoder is None:
        decoded = model.head.transform(states)
    else:
        ends = (questions.spans[:, 1] - questions.spans[:, 0]).cumsum(0)
        spans = torch.stack([torch.cat([ends.new_zeros(1), ends[:-1]]), ends], dim=1)  # in the rows of the targets
        decoded = model.decoder(
            states,
            repeated._replace(
                fact=_shifted(questions.fact, len(lengths), count),
                place=questions.place.repeat(count),
                spans=_shifted(spans, len(states) // count, count),
                relations=questions.relations.repeat(count, 1),
                inverse=questions.inverse.repeat(count),
            ),
        )
    probabilities = answer_probabilities(decoded, model.encoder.embeddings.word, repeated)
    return (probabilities * share.repeat(count)).sum()


def _add_scores(
    found: Scores,
    place: int,
    layer: EncoderLayer,
    states: Tensor,
    gradients: Tensor,
    weights: Tensor,
    with_coordinates: bool,
) -> None:
    """Eq. 11 for one layer, from the gradients [m, R, D] by its output."""
    memory = layer.feed_forward
    before = F.linear(states, memory.keys, memory.key_bias)
    activated = memory.activation(before)
    found.neurons[place] += riemann_scores(gradients, weights, memory.values, activated)
    if with_coordinates:
        mean = torch.einsum("k,ktd->td", weights, gradients.float()).to(states.dtype)
        found.outputs[place] += ((activated @ memory.values).float() * mean.float()).clamp(min=0).sum(0)
        by_input = before_activation(mean @ memory.values.t(), before, memory.kind) @ memory.keys
        found.inputs[place] += (states.float() * by_input.float()).clamp(min=0).sum(0)
