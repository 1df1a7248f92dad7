"""Which neurons one fact comes from: a cloze question put to a model, attributed, listed and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.model import AssessingBatch, Batch, MaskedLanguageModel, StepTables
from trelm_ds.routing.attribution import attribute
from trelm_ds.routing.quadrature import QUADRATURES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK = "[MASK]"
_COLUMNS = 128  # of the heat map


class Explanation(NamedTuple):
    """A fact and where it comes from.

    Attributes:
        prompt, answer: the question.
        probability: of the answer: mean over its tokens of the softmax over the whole vocabulary.
        scores: float32 [L, F]: sum over the answer's positions of max(Attr, 0), Eq. 11.
        path: int64 [L', S]: neurons on the paths of the upper L' layers; None for a model without.
    """

    prompt: str
    answer: str
    probability: float
    scores: Tensor
    path: Tensor | None


def explain(
    model: MaskedLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    quadrature: str = "gauss3",
    path: Tensor | None = None,
) -> Explanation:
    """Attribute an answer to neurons.

    Args:
        model: of `frozen`.
        tokenizer: its own.
        prompt: a sentence with `[MASK]` in the place of the answer.
        answer: what belongs there; a mask for each of its tokens.
        quadrature: of QUADRATURES.
        path: int64 [L', S], of a checkpoint.

    Raises:
        UserError: a prompt without exactly one [MASK], an answer that is no text or that the tokenizer cannot write,
            more tokens than positions.
    """
    if prompt.count(MASK) != 1:
        raise UserError(f"--prompt: must hold {MASK} once, got {prompt!r}")
    before, after = prompt.split(MASK)
    answer = answer.strip()
    _check_text("--prompt", before + after, tokenizer)
    _check_text("--answer", answer, tokenizer)
    if not answer:
        raise UserError("--answer: must not be empty")
    encoded = tokenizer(before + answer + after, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    positions = torch.tensor(
        [
            place
            for place, (first, last) in enumerate(encoded["offset_mapping"])
            if first < len(before) + len(answer) and last > len(before) and last > first
        ]
    )
    if len(ids) > model.config.max_position_embeddings:
        most = model.config.max_position_embeddings
        raise UserError(f"--prompt: has {len(ids)} tokens, the model reads {most}; shorten it")
    labels = ids[positions]
    if not len(positions) or tokenizer.unk_token_id in labels.tolist():
        raise UserError(f"--answer: the tokenizer does not know all of {answer!r}")
    ids = ids.index_fill(0, positions, tokenizer.mask_token_id)
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    nothing = torch.zeros(0, 1)
    tables = StepTables(  # without candidates all words compete, as for a cloze reader
        vectors=nothing, memories=nothing, memory_lambda=0.0, candidates=torch.zeros(0, dtype=torch.int64)
    )
    batch = Batch.of_documents(ids, bounds, len(ids))._replace(objectives={"cka": _one_fact(positions, labels)})
    found = attribute(model, batch, tables, QUADRATURES[quadrature])
    with torch.no_grad():
        logits = model.logits(model.encoder(ids, bounds, len(ids))[positions]).float()
    probability = logits.softmax(-1).gather(1, labels[:, None]).mean().item()
    return Explanation(prompt, answer, probability, found.neurons, path)


def _one_fact(positions: Tensor, labels: Tensor) -> AssessingBatch:
    """Ask for one answer: tokens `labels` at the masks `positions`, int64 [N] each."""
    nothing = positions.new_zeros(0)
    return AssessingBatch(
        labels=labels,
        fact=torch.zeros_like(positions),
        place=torch.arange(len(positions)),
        positions=positions,
        spans=nothing.view(0, 2),
        relations=nothing,
        inverse=torch.zeros(1, dtype=torch.bool),
        routed=torch.ones(1, dtype=torch.bool),
    )


def _check_text(name: str, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: is not valid UTF-8") from None
    for token in tokenizer.all_special_tokens:
        if token in text:
            raise UserError(f"{name}: {token} is no text for this tokenizer; leave it out")


def on_path(found: Explanation) -> Tensor | None:
    """Mark the neurons that training updates, bool [L, F]; None for a model without paths."""
    if found.path is None:
        return None
    chosen = torch.zeros(found.scores.shape, dtype=torch.bool)
    first = len(chosen) - len(found.path)
    chosen[first:].scatter_(1, found.path, True)
    return chosen


def to_json(found: Explanation, top: int) -> dict[str, Any]:
    """Collect plain values: the strongest neurons, and every layer's part of the whole attribution."""
    total = found.scores.sum().clamp(min=torch.finfo(torch.float32).tiny)
    chosen = on_path(found)
    strongest = found.scores.flatten().topk(min(top, found.scores.numel()))[1]
    neurons = []
    for place in strongest.tolist():
        layer, neuron = divmod(place, found.scores.shape[1])
        score = found.scores[layer, neuron]
        one: dict[str, Any] = {"layer": layer, "neuron": neuron, "score": float(score), "share": float(score / total)}
        neurons.append(one if chosen is None else one | {"on_path": bool(chosen[layer, neuron])})
    layers = []
    for layer, scores in enumerate(found.scores):
        one = {"layer": layer, "share": float(scores.sum() / total)}
        if chosen is not None:
            one["on_path"] = float(scores[chosen[layer]].sum() / scores.sum().clamp(min=1e-30))
        layers.append(one)
    return {
        "prompt": found.prompt,
        "answer": found.answer,
        "probability": found.probability,
        "neurons": neurons,
        "layers": layers,
    }


def table(result: dict[str, Any]) -> str:
    """Format the result of `to_json` as text."""
    lines = [f"{result['prompt']}  ->  {result['answer']}   p = {result['probability']:.4f}", ""]
    lines.append(f"{'layer':>5} {'neuron':>7} {'score':>10} {'share':>7}  on path")
    for one in result["neurons"]:
        path = {True: "yes", False: "no", None: "-"}[one.get("on_path")]
        lines.append(f"{one['layer']:>5} {one['neuron']:>7} {one['score']:>10.3g} {100 * one['share']:>6.1f}%  {path}")
    lines += ["", f"{'layer':>5} {'share':>7} {'of it on path':>14}"]
    for one in result["layers"]:
        path = f"{100 * one['on_path']:.1f}%" if "on_path" in one else "-"
        lines.append(f"{one['layer']:>5} {100 * one['share']:>6.1f}% {path:>14}")
    return "\n".join(lines)


def plot(found: Explanation, file: Path) -> None:
    """Draw a heat map: layers over neurons, the strongest of each group of neighbours; beside it every layer's sum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, neurons = found.scores.shape
    columns = min(_COLUMNS, neurons)
    padded = torch.zeros(layers, columns * -(-neurons // columns))
    padded[:, :neurons] = found.scores
    strongest = padded.view(layers, columns, -1).amax(-1)
    figure = Figure(figsize=(11, 1.6 + 0.3 * layers), layout="constrained")
    FigureCanvasAgg(figure)
    heat, sums = figure.subplots(1, 2, sharey=True, width_ratios=[5, 1])
    image = heat.imshow(
        strongest.numpy(), aspect="auto", cmap="magma", origin="lower", extent=(0, neurons, -0.5, layers - 0.5)
    )
    figure.colorbar(image, ax=heat, label="attribution")
    heat.set_xlabel(f"neuron (strongest of {padded.shape[1] // columns} neighbours)")
    heat.set_ylabel("layer")
    heat.set_yticks(range(layers))
    heat.set_title(f"{found.prompt} -> {found.answer}  (p = {found.probability:.3f})", fontsize=10, parse_math=False)
    whole = found.scores.sum(1)
    sums.barh(range(layers), whole.tolist(), color="tab:gray", label="all")
    chosen = on_path(found)
    if chosen is not None:
        sums.barh(range(layers), (found.scores * chosen).sum(1).tolist(), color="tab:orange", label="on path")
        sums.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    sums.set_xlabel("sum of the layer")
    figure.savefig(file, dpi=130)
