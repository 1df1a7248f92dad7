"""The count of FLOPs, against torch's own count of what a small model really multiplies, and against hand-made sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.model.tiny_models import make_documents, pack_batch
from trelm_ds.config import Config, ModelConfig, RoutingConfig
from trelm_ds.model import (
    PEAKS,
    Batch,
    EncoderConfig,
    KnowledgePath,
    MaskedLanguageModel,
    Updated,
    Work,
    flops_per_token,
    peak_tflops,
    training_flops,
)
from trelm_ds.training.model import restrict

SIZES = EncoderConfig.from_settings(
    ModelConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
    ),
    vocab_size=97,
    pad_token_id=0,
)
CHOSEN = 8  # neurons of a path, of 40


def of_path(left: torch.Size, right: torch.Size, rows: torch.Size, *_: object, **__: object) -> int:
    """FLOPs of our operation that computes the weight gradients of a path, of which torch knows nothing."""
    return 2 * left[0] * rows[0] * right[1]


def counted(model: MaskedLanguageModel, batch: Batch) -> int:
    """What torch counts in a forward and a backward pass.

    In float64, because the head adds to its fp32 gradients by an operation (addmm_) that torch's counter does not know;
    with attention as plain products, because it does not know that of CPUs either.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.trelm.path_weight_gradient: of_path})
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(batch).losses["mlm"].backward()
    return counter.get_total_flops()


def model_of(**routing: object) -> MaskedLanguageModel:
    """A small model as routing leaves it: with a path in the layers that have one, if at all."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(SIZES)
    settings = RoutingConfig(enabled=bool(routing), density=CHOSEN / SIZES.intermediate_size, **routing)  # type: ignore[arg-type]
    restrict(model, replace(Config(), routing=settings))
    if routing:
        for block in model.encoder.blocks[SIZES.num_hidden_layers - (settings.top_layers or SIZES.num_hidden_layers) :]:
            block.feed_forward.path = block.feed_forward.path or KnowledgePath(torch.arange(3, 3 + CHOSEN))
    return model.double()


def batch_of(lengths: list[int]) -> Batch:
    return pack_batch(make_documents(lengths), [1, 4, 9, 10], [5, 6, 7, 8])


@pytest.mark.parametrize(
    ("routing", "updated"),
    [
        ({}, Updated()),
        ({"trainable": "all"}, Updated(neurons=0.2)),
        ({"trainable": "all", "compact": True}, Updated(neurons=0.2)),
        ({"trainable": "all", "top_layers": 2}, Updated(neurons=0.2, first_layer=1)),
        ({"trainable": "ffn_only"}, Updated(neurons=0.2, others=False)),
        ({"trainable": "ffn_only", "compact": True}, Updated(neurons=0.2, others=False)),
        ({"trainable": "ffn_only", "top_layers": 1}, Updated(neurons=0.2, first_layer=2, others=False)),
    ],
)
def test_it_is_what_torch_counts(routing: dict[str, object], updated: Updated) -> None:
    batch = batch_of([6, 6, 6])
    assert Work.of(batch) == Work(tokens=18, pairs=108, scored=4)
    assert counted(model_of(**routing), batch) == training_flops(SIZES, Work.of(batch), updated)


def test_gradients_that_go_on_to_the_input_are_counted() -> None:
    """As under ffn_only with a map of injected vectors that learns."""
    model, batch = model_of(trainable="ffn_only"), batch_of([6, 6, 6])
    model.encoder.embeddings.norm.bias.requires_grad_(True)  # costs no product itself
    updated = Updated(neurons=0.2, others=False, reaches_input=True)
    assert counted(model, batch) == training_flops(SIZES, Work.of(batch), updated)


def test_padding_within_attention_is_not_counted() -> None:
    """The CPU's attention pads documents to the longest; only the pairs of tokens of one document count."""
    batch = batch_of([3, 5, 10])
    work = Work.of(batch)
    assert work.pairs == 9 + 25 + 100
    padding = 3 * 4 * (3 * 10 * 10 - work.pairs) * SIZES.hidden_size * SIZES.num_hidden_layers
    assert counted(model_of(), batch) == training_flops(SIZES, work) + padding


def test_documents_behind_the_sequences_count_by_their_own_lengths() -> None:
    sequences, queries = make_documents([6, 6]), make_documents([2, 3], seed=1)
    batch = pack_batch([*sequences, *queries])._replace(n_sequences=2)
    assert Work.of(batch) == Work(tokens=17, pairs=36 + 36 + 4 + 9, scored=0)


def test_bert_base() -> None:
    """12 layers of 8 D^2 + 4 S D + 4 D F, and the head for 15% of the tokens, three times."""
    sizes = EncoderConfig.from_settings(ModelConfig(), 30522, 0)
    layer = 8 * 768**2 + 4 * 512 * 768 + 4 * 768 * 3072
    head = 0.15 * (2 * 768**2 + 2 * 768 * 30522)
    dense = flops_per_token(sizes, 512, 0.15)
    assert dense == pytest.approx(3 * (12 * layer + head))
    assert flops_per_token(sizes, 512, 0.15, Updated(neurons=0.1)) == pytest.approx(dense - 0.9 * 12 * 4 * 768 * 3072)
    assert flops_per_token(sizes, 512, 0.15, Updated(neurons=0.1, others=False)) < 0.7 * dense


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("Another", None),
    ],
)
def test_peaks_go_by_the_gpus_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_every_peak_is_found_by_its_own_name() -> None:
    assert {name: peak_tflops(f"NVIDIA {name}") for name in PEAKS} == PEAKS
