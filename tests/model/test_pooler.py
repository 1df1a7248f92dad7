"""The pooler, and pairs of texts, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM, BertModel, RobertaModel

from tests.model.tiny_models import make_documents, make_hf, pack
from trelm_ds.errors import UserError
from trelm_ds.model import load_encoder, load_pooler, load_pretrained, save_pretrained

KINDS = {"bert": BertModel, "roberta": RobertaModel}


@pytest.mark.parametrize("architecture", KINDS)
def test_pooled_states_equal_transformers(architecture: str, tmp_path: Path) -> None:
    hf = KINDS[architecture](make_hf(architecture).config).eval()
    hf.save_pretrained(tmp_path)
    document = make_documents([9])
    pooler = load_pooler(tmp_path)
    assert pooler is not None
    with torch.no_grad():
        ours = pooler(load_encoder(tmp_path).eval()(*pack(document))[:1])
        torch.testing.assert_close(ours, hf(input_ids=document[0][None]).pooler_output, atol=1e-5, rtol=0)


def test_the_second_of_two_texts_has_its_own_type(tmp_path: Path) -> None:
    hf = make_hf("bert")
    hf.save_pretrained(tmp_path)
    documents = make_documents([9, 5])
    types = [torch.tensor([0] * 4 + [1] * 5), torch.tensor([0, 0, 1, 1, 1])]
    with torch.no_grad():
        ours = load_encoder(tmp_path).eval()(*pack(documents), token_types=torch.cat(types))
        for states, document, of_document in zip(ours.split([9, 5]), documents, types, strict=True):
            theirs = hf.bert(input_ids=document[None], token_type_ids=of_document[None]).last_hidden_state[0]
            torch.testing.assert_close(states, theirs, atol=1e-5, rtol=0)


def test_a_folder_keeps_its_pooler(tmp_path: Path) -> None:
    hf = BertModel(make_hf("bert").config)
    hf.save_pretrained(tmp_path / "hf")
    model, pooler = load_pretrained(tmp_path / "hf"), load_pooler(tmp_path / "hf")
    save_pretrained(model, model.config, tmp_path / "out", None, pooler)
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(again.pooler.dense.weight, hf.pooler.dense.weight)
    assert torch.equal(again.pooler.dense.bias, hf.pooler.dense.bias)
    _, info = BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def test_no_pooler(tmp_path: Path) -> None:
    make_hf("bert").save_pretrained(tmp_path)
    assert load_pooler(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"pooler.dense.weight": torch.zeros(3, 3)}, r"'bert.pooler.dense.weight' has shape \[3, 3\]; .* \[32, 32\]"),
        ({"pooler.dense.bias": None}, "'bert.pooler.dense.bias' is missing"),
    ],
)
def test_a_pooler_that_does_not_fit(damage: dict[str, torch.Tensor | None], message: str, tmp_path: Path) -> None:
    BertModel(make_hf("bert").config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | damage
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_pooler(tmp_path)
