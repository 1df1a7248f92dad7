"""Packing, empty batches, checkpointing, fresh weights."""

from __future__ import annotations

import pytest
import torch

from tests.model.tiny_models import make_documents, pack, pack_batch
from trelm_ds.config import ModelConfig
from trelm_ds.errors import UserError
from trelm_ds.model import EncoderConfig, MaskedLanguageModel


def make_config(architecture: str = "bert", dropout: float = 0.0) -> EncoderConfig:
    settings = ModelConfig(
        architecture=architecture,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return EncoderConfig.from_settings(settings, vocab_size=97, pad_token_id=1 if architecture == "roberta" else 0)


def make_model(dropout: float = 0.0, activation_checkpointing: bool = False) -> MaskedLanguageModel:
    torch.manual_seed(5)
    return MaskedLanguageModel(make_config(dropout=dropout), activation_checkpointing)


def test_a_document_does_not_see_its_neighbours() -> None:
    model = make_model().eval()
    first, second, third = make_documents([6, 11, 3])
    with torch.no_grad():
        alone = model.encoder(*pack([second]))
        beside = model.encoder(*pack([first, second, third]))[6:17]
        after_itself = model.encoder(*pack([second, second]))
    torch.testing.assert_close(beside, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(after_itself, alone.repeat(2, 1), atol=1e-6, rtol=0)


def test_a_larger_max_seqlen_changes_nothing() -> None:
    model = make_model().eval()
    input_ids, cu_seqlens, _ = pack(make_documents([6, 6]))
    with torch.no_grad():
        exact, roomy = model.encoder(input_ids, cu_seqlens, 6), model.encoder(input_ids, cu_seqlens, 24)
    torch.testing.assert_close(roomy, exact, atol=1e-6, rtol=0)


def test_too_long_a_document_is_named() -> None:
    with pytest.raises(ValueError, match="25 tokens is longer than the model's 24 positions"):
        make_model().encoder(*pack(make_documents([25])))


def test_no_masked_token_gives_zero_loss_and_zero_gradients() -> None:
    model = make_model(dropout=0.1).train()
    output = model(pack_batch(make_documents([6, 11])))
    output.losses["mlm"].backward()
    assert output.losses["mlm"].item() == 0
    assert output.correct["mlm"].item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() == 0, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_is_exact(dropout: float) -> None:
    gradients, losses = [], []
    for checkpointing in (False, True):
        model = make_model(dropout, checkpointing).train()
        torch.manual_seed(11)
        output = model(pack_batch(make_documents([6, 11, 3]), [0, 8, 19], [4, 5, 6]))
        output.losses["mlm"].backward()
        losses.append(output.losses["mlm"].item())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert losses[0] == losses[1]
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_dropout_acts_in_training_only() -> None:
    model, batch = make_model(dropout=0.3), pack(make_documents([6, 11]))
    with torch.no_grad():
        assert not torch.equal(model.train().encoder(*batch), model.encoder(*batch))
        assert torch.equal(model.eval().encoder(*batch), model.encoder(*batch))


def test_bf16_loss_is_fp32_and_close() -> None:
    model = make_model()
    batch = pack_batch(make_documents([6, 11]), [2, 7], [4, 5])
    exact = model(batch).losses["mlm"]
    rounded = model.bfloat16()(batch).losses["mlm"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_fresh_weights(architecture: str) -> None:
    torch.manual_seed(0)
    config = make_config(architecture)
    model = MaskedLanguageModel(config)
    assert model.encoder.embeddings.word.weight[config.pad_token_id].count_nonzero() == 0
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif parameter.dim() == 1:
            assert (parameter == 0).all(), name
        elif parameter.numel() > 100:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name


def test_the_decoder_is_the_word_embedding() -> None:
    shapes = [name for name, parameter in make_model().named_parameters() if 97 in parameter.shape]
    assert shapes == ["encoder.embeddings.word.weight", "head.bias"]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_config_survives_hugging_face(architecture: str) -> None:
    config = make_config(architecture)
    hf = config.to_hf()
    assert hf["max_position_embeddings"] == (26 if architecture == "roberta" else 24)
    assert EncoderConfig.from_hf(hf) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: must be one of bert, roberta, xlm-roberta, camembert, got 'gpt2'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: only 'absolute' is supported"),
        ({"hidden_act": "mish"}, "hidden_act: must be one of gelu"),
        ({"num_attention_heads": 5}, "num_attention_heads: must divide hidden_size 32, got 5"),
        ({"hidden_size": "32"}, "hidden_size: expected a int, got '32'"),
        ({"pad_token_id": 97}, "pad_token_id: must lie in the vocabulary of 97, got 97"),
    ],
)
def test_config_errors_name_the_setting(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EncoderConfig.from_hf(make_config().to_hf() | change)
