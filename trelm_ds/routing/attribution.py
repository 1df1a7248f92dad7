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
    Assessing,
    AssessingBatch,
    Batch,
    KeyValueFeedForward,
    MaskedLanguageModel,
    PackedLayout,
    ProductDecoder,
    StepTables,
    answer_bias,
    answer_probabilities,
    know_linear,
    make_tensor_parallel,
    packed_layout,
)
from trelm_ds.routing.quadrature import Quadrature


class NeuronScores(NamedTuple):
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
    """Make a model that shares the given weights: in eval mode, without gradients, without any hooks."""
    with torch.device("meta"):
        view = MaskedLanguageModel(model.config)
        if (decoder := model.decoder) is not None:
            view.objectives["cka"] = Assessing(ProductDecoder(model.config, decoder.max_places))
        if model.know_linear is not None:
            view.know_linear = know_linear(model.config.hidden_size)
    if model.tensor_group is not None:
        make_tensor_parallel(view, model.tensor_group)
    view.load_state_dict({name: weights[name] for name in view.state_dict()}, assign=True)
    return view.requires_grad_(False).eval()


def no_scores(model: MaskedLanguageModel, first_layer: int, device: torch.device) -> NeuronScores:
    """Make zeros, for where there is nothing to look at."""
    ffns = [layer.feed_forward for layer in model.encoder.blocks[first_layer:]]
    size = model.config.hidden_size
    neurons, inputs, outputs = (
        torch.zeros(len(ffns), width, device=device) for width in (len(ffns[0].own), size, size)
    )
    return NeuronScores(neurons, inputs, outputs, torch.zeros((), device=device))


def attribute(
    model: MaskedLanguageModel,
    batch: Batch,
    tables: StepTables,
    quadrature: Quadrature,
    first_layer: int = 0,
    max_tokens: int = 16384,
    with_coordinates: bool = False,
) -> NeuronScores:
    """Score all neurons of the layers from `first_layer` on (Eq. 11), with P of Eq. 9.

    P of a fact is the mean probability of its answer's tokens among the candidates of its assessing. The whole
    activation vector of a layer is scaled at the fact's decode positions, one layer at a time. The decode positions are
    the answers' masks (decoder query), or the rows of the mentions (product). A document must not hold those of two
    facts: scaled together they would not be apart.

    Args:
        model: of `frozen`.
        batch: documents with at least one fact in `objectives["cka"]`.
        tables: of its step.
        quadrature: nodes and weights.
        first_layer: layers below are left out.
        max_tokens: tokens of one pass at most; nodes that would not fit are looked at one after another.
        with_coordinates: whether inputs and outputs are scored too: an output coordinate by the same integral (it is
            linear in alpha), an input coordinate by the gradient that the integral's mean sends back to it.
    """
    encoder, facts, device = model.encoder, batch.objectives["cka"], batch.input_ids.device
    layout = packed_layout(batch.cu_seqlens, batch.max_seqlen, batch.input_ids.numel())
    targets = _targets(batch, facts)
    with torch.no_grad():
        attended, outputs = _prefix(model, batch, tables, layout, targets)
    together = max(1, max_tokens // batch.input_ids.numel())
    weights = torch.tensor(quadrature.weights, device=device)
    found = no_scores(model, first_layer, device)
    for index in range(first_layer, len(encoder.layers)):
        states = attended[index]
        gradients = torch.cat(
            [
                _node_gradients(model, batch, tables, targets, index, states, outputs[index], nodes)
                for nodes in torch.tensor(quadrature.nodes, device=weights.device).split(together)
            ]
        )
        with torch.no_grad():
            _add_scores(
                found,
                index - first_layer,
                encoder.blocks[index].feed_forward,
                states,
                gradients,
                weights,
                with_coordinates,
            )
    return found._replace(facts=found.facts + len(_answer_lengths(facts)))


def _targets(batch: Batch, facts: AssessingBatch) -> _Targets:
    rows = facts.positions
    if len(facts.spans):
        lengths = facts.spans[:, 1] - facts.spans[:, 0]
        ends = lengths.cumsum(0)
        rows = torch.arange(int(ends[-1]), device=lengths.device)
        rows = rows + torch.repeat_interleave(facts.spans[:, 0] - (ends - lengths), lengths)
    bounds = torch.searchsorted(rows, batch.cu_seqlens.long()).int()
    return _Targets(rows, packed_layout(bounds, int(bounds.diff().max()), len(rows)))


def _answer_lengths(facts: AssessingBatch) -> Tensor:
    """Count the tokens of every answer: int64 [F]."""
    return torch.bincount(facts.fact)


def _prefix(
    model: MaskedLanguageModel, batch: Batch, tables: StepTables, layout: PackedLayout, targets: _Targets
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each layer's feed-forward input at the targets [R, D], and its output [T, D] (of the last layer none)."""
    blocks = model.encoder.blocks
    hidden = model.encoder.embeddings(batch.input_ids, layout.positions, model.injection(batch.items, tables))
    attended, outputs = [], []
    for layer in blocks[:-1]:
        states = layer.attend(hidden, layout)
        hidden = layer.transform(states)
        attended.append(states.index_select(0, targets.rows))
        outputs.append(hidden)
    attended.append(blocks[-1].attend(hidden, layout, hidden.index_select(0, targets.rows), targets.layout))
    return attended, [*outputs, hidden[:0]]


def _node_gradients(
    model: MaskedLanguageModel,
    batch: Batch,
    tables: StepTables,
    targets: _Targets,
    index: int,
    states: Tensor,
    output: Tensor,
    nodes: Tensor,
) -> Tensor:
    """Compute dP/dy at each node, y the feed-forward's output at the targets: [m, R, D]."""
    blocks, count = model.encoder.blocks, len(nodes)
    layer = blocks[index]
    ffn = layer.feed_forward
    product = ffn.summed(ffn.activation(F.linear(states, ffn.keys, ffn.key_bias)) @ ffn.values)
    scaled = nodes.to(product.dtype)[:, None, None] * product + ffn.value_bias
    scaled.requires_grad_()
    at_targets = layer.finish(states, scaled)
    if index + 1 < len(blocks):
        # Each node has a copy of the documents, which differ from one another at the targets and above only.
        hidden = output.expand(count, -1, -1).index_copy(1, targets.rows, at_targets).flatten(0, 1)
        layout = _repeated(batch.cu_seqlens, batch.max_seqlen, count)
        row_layout = _repeated(targets.layout.cu_seqlens, targets.layout.max_seqlen, count)
        rows = _shifted(targets.rows, len(output), count)
        for above in blocks[index + 1 : -1]:
            hidden = above(hidden, layout)
        last = blocks[-1]
        at_targets = last.transform(last.attend(hidden, layout, hidden.index_select(0, rows), row_layout))
    at_targets = at_targets.view(-1, at_targets.shape[-1])
    answered = _answer_probability(model, batch.objectives["cka"], tables, at_targets, count)
    return torch.autograd.grad(answered, scaled)[0]


def _repeated(cu_seqlens: Tensor, max_seqlen: int, count: int) -> PackedLayout:
    """Lay out `count` copies of packed documents, one after another."""
    total = cu_seqlens[-1]
    copies = torch.arange(count, device=cu_seqlens.device, dtype=cu_seqlens.dtype) * total
    bounds = torch.cat([cu_seqlens[:1], (copies[:, None] + cu_seqlens[1:]).flatten()])
    return packed_layout(bounds, max_seqlen, count * int(total))


def _shifted(rows: Tensor, total: int, count: int) -> Tensor:
    """Turn rows of one copy of `total` rows [n, ...] into those of all copies [count * n, ...]."""
    copies = torch.arange(count, device=rows.device) * total
    return (copies.view(-1, *[1] * rows.dim()) + rows).flatten(0, 1)


def _answer_probability(
    model: MaskedLanguageModel, facts: AssessingBatch, tables: StepTables, states: Tensor, count: int
) -> Tensor:
    """Sum P (Eq. 9) over facts and copies, from the states [m * R, D] at the decode positions."""
    lengths = _answer_lengths(facts)
    share = (1 / lengths)[facts.fact]  # P of a fact is the mean over its answer's tokens
    bias = None
    if model.decoder is None:
        decoded, bias = model.head.transform(states), answer_bias(model, tables)
    else:
        ends = (facts.spans[:, 1] - facts.spans[:, 0]).cumsum(0)
        spans = torch.stack([torch.cat([ends.new_zeros(1), ends[:-1]]), ends], dim=1)  # in the rows of the targets
        repeated = facts._replace(
            fact=_shifted(facts.fact, len(lengths), count),
            place=facts.place.repeat(count),
            spans=_shifted(spans, len(states) // count, count),
            relations=facts.relations.repeat(count),
            inverse=facts.inverse.repeat(count),
        )
        decoded = model.decoder(states, repeated, tables.vectors)
    labels = facts.labels.repeat(count)
    probabilities = answer_probabilities(decoded, model.encoder.embeddings.word, labels, tables, bias)
    return (probabilities * share.repeat(count)).sum()


def _add_scores(
    found: NeuronScores,
    place: int,
    ffn: KeyValueFeedForward,
    states: Tensor,
    gradients: Tensor,
    weights: Tensor,
    with_coordinates: bool,
) -> None:
    """Add Eq. 11 for one layer, from the gradients [m, R, D] by its output."""
    before = F.linear(states, ffn.keys, ffn.key_bias)
    activated = ffn.activation(before)
    found.neurons[place] += riemann_scores(gradients, weights, ffn.values, activated)
    if with_coordinates:
        mean = torch.einsum("k,ktd->td", weights, gradients.float()).to(states.dtype)
        output = ffn.summed(activated @ ffn.values)
        found.outputs[place] += (output.float() * mean.float()).clamp(min=0).sum(0)
        by_input = ffn.summed(before_activation(mean @ ffn.values.t(), before, ffn.kind) @ ffn.keys)
        found.inputs[place] += (states.float() * by_input.float()).clamp(min=0).sum(0)
