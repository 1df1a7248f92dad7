"""Each project's checkpoint, converted, computes in transformers what a literal reading of its code computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, LukeConfig, LukeForMaskedLM

from tests.model.tiny_models import pack
from tests.relatives import published, slow
from tests.relatives.published import BERT, HEADS, ROBERTA, D, Tensors
from trelm_ds.model import load_encoder, load_pooler, load_pretrained
from trelm_ds.relatives import Report, convert

LENGTH = 13


def words(size: int) -> Tensor:
    """Ids of a text, special tokens left out."""
    return torch.randint(5, size - 1, (LENGTH,), generator=torch.Generator().manual_seed(0))


def states_and_scores(folder: Path, ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(input_ids=ids[None]).last_hidden_state[0]
        scores = AutoModelForMaskedLM.from_pretrained(folder).eval()(input_ids=ids[None]).logits[0]
        ours = load_pretrained(folder).eval()
        torch.testing.assert_close(ours.logits(ours.encoder(*pack([ids]))), scores, atol=1e-4, rtol=0)
    return states, scores


def assert_same(folder: Path, ids: Tensor, states: Tensor, scores: Tensor) -> None:
    found_states, found_scores = states_and_scores(folder, ids)
    torch.testing.assert_close(found_states, states, atol=3e-5, rtol=0)
    torch.testing.assert_close(found_scores, scores, atol=1e-4, rtol=0)


def assert_stored(folder: Path, tensors: Tensors, base: str, own: str, differ: str = "nothing") -> None:
    """The folder's encoder and pooler are the stored tensors to the bit, but for names that end as `differ`."""
    pooler = load_pooler(folder)
    assert pooler is not None
    assert torch.equal(pooler.dense.weight, tensors[f"{base}pooler.dense.weight"])
    written = load_file(folder / "model.safetensors")
    names = [name for name in written if name.startswith(own) and not name.endswith(differ)]
    assert f"{own}pooler.dense.weight" in names
    for name in names:
        assert torch.equal(written[name], tensors[base + name.removeprefix(own)]), name


# --- KEPLER ---
@pytest.mark.parametrize(
    ("fused", "side", "embedding_norm"),
    [(True, "decoder", "emb_layer_norm"), (False, "encoder", "layernorm_embedding")],
    ids=["fairseq 0.8", "later fairseq"],
)
def test_kepler(fused: bool, side: str, embedding_norm: str, tokenizer: Path, tmp_path: Path) -> None:
    tensors = published.kepler_tensors(fused, side, embedding_norm)
    published.kepler(tmp_path / "kepler", tensors)
    report = convert("kepler", tmp_path / "kepler", tmp_path / "out", tokenizer)
    ids = words(len(ROBERTA))
    assert_same(tmp_path / "out", ids, *slow.fairseq(tensors, side, ids, HEADS))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["type_vocab_size"]) == (published.POSITIONS + 2, 1)
    assert "relation embeddings 22 x 32" in report.left
    assert "constants of the knowledge embedding head (2 tensors, 2 numbers)" in report.left
    assert "beside the tensors: optimizer_history, extra_state, last_optimizer_state" in report.left
    assert "MLM head; no pooler" in report.kept


def test_kepler_with_padding(tokenizer: Path, tmp_path: Path) -> None:
    """Positions count from behind the padding's, and padding is not attended to."""
    tensors = published.kepler(tmp_path / "kepler")
    convert("kepler", tmp_path / "kepler", tmp_path / "out", tokenizer)
    ids = words(len(ROBERTA))
    padded = torch.cat([ids, torch.ones(4, dtype=torch.long)])[None]
    with torch.no_grad():
        model = AutoModel.from_pretrained(tmp_path / "out").eval()
        found = model(input_ids=padded, attention_mask=(padded != 1).long()).last_hidden_state[0, :LENGTH]
    torch.testing.assert_close(found, slow.fairseq(tensors, "decoder", ids, HEADS)[0], atol=3e-5, rtol=0)


def test_kepler_without_arguments_takes_heads_from_the_user(tokenizer: Path, tmp_path: Path) -> None:
    tensors = published.kepler_tensors()
    torch.save({"model": tensors, "args": None}, tmp_path / "model.pt")
    report = convert("kepler", tmp_path / "model.pt", tmp_path / "out", tokenizer, heads=HEADS)
    ids = words(len(ROBERTA))
    assert_same(tmp_path / "out", ids, *slow.fairseq(tensors, "decoder", ids, HEADS))
    assert any(line.startswith(f"{HEADS} heads, as the checkpoint does not say it: --heads") for line in report.notes)
    assert any(line.startswith("gelu, as the checkpoint does not say it") for line in report.notes)


def test_kepler_with_the_settings_of_later_fairseq(tokenizer: Path, tmp_path: Path) -> None:
    tensors = published.kepler_tensors()
    settings = {"model": published.kepler_arguments()}
    torch.save({"model": tensors, "args": None, "cfg": settings}, tmp_path / "model.pt")
    report = convert("kepler", tmp_path / "model.pt", tmp_path / "out", tokenizer)
    assert f"{HEADS} heads" in report.kept
    assert not any("does not say it" in line for line in report.notes)


def test_half_precision_becomes_single_without_a_change(tokenizer: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in published.kepler_tensors().items()}
    published.kepler(tmp_path / "kepler", tensors, zipped=True)
    convert("kepler", tmp_path / "kepler", tmp_path / "out", tokenizer)
    written = load_file(tmp_path / "out" / "model.safetensors")
    word = written["roberta.embeddings.word_embeddings.weight"]
    assert word.dtype == torch.float32
    assert torch.equal(word, tensors["decoder.sentence_encoder.embed_tokens.weight"].float())
    key = tensors["decoder.sentence_encoder.layers.1.self_attn.in_proj_weight"][D : 2 * D].float()
    assert torch.equal(written["roberta.encoder.layer.1.attention.self.key.weight"], key)


# --- CoLAKE ---
def test_colake(tokenizer: Path, tmp_path: Path) -> None:
    import numpy as np

    tensors = published.colake(tmp_path / "colake")
    np.save(tmp_path / "colake" / "entities.npy", np.zeros((40, D), dtype=np.float32))
    report = convert("colake", tmp_path / "colake", tmp_path / "out", tokenizer, heads=HEADS)
    ids = words(len(ROBERTA))
    states = slow.bert(tensors, "roberta.", ids, torch.arange(LENGTH) + 2, HEADS, 1e-5)
    scores = slow.roberta_scores(tensors, states, "roberta.embeddings.word_embeddings.weight")
    assert_same(tmp_path / "out", ids, states, scores)
    assert_stored(tmp_path / "out", tensors, "roberta.", "roberta.")
    assert "relation embeddings 11 x 32" in report.left
    assert "entity embeddings 40 x 32 in entities.npy" in report.left
    (tmp_path / "colake" / "entities.npy").write_bytes(b"cut")  # what is not read may be damaged
    again = convert("colake", tmp_path / "colake", tmp_path / "again", tokenizer, heads=HEADS)
    assert "entity embeddings in entities.npy" in again.left
    assert not any(line.startswith("other tensors") for line in report.left)


# --- ERNIE ---
def test_ernie_without_entities(tmp_path: Path) -> None:
    tensors = published.ernie(tmp_path / "ernie")
    report = convert("ernie", tmp_path / "ernie", tmp_path / "out")
    ids, masked = words(len(BERT)), torch.zeros(LENGTH)
    given = torch.randn(LENGTH, published.E)  # whatever they are, the mask hides them
    states = slow.ernie(tensors, published.ERNIE_KINDS, ids, HEADS, given, masked)
    scores = slow.bert_scores(tensors, states, "bert.embeddings.word_embeddings.weight", 1e-12)
    assert_same(tmp_path / "out", ids, states, scores)
    assert_stored(tmp_path / "out", tensors, "bert.", "bert.", differ="intermediate.dense.bias")
    assert report.left[0].startswith("attention among entities (10 tensors")
    assert "next sentence head (2 tensors, 66 numbers)" in report.left
    assert not any(line.startswith("other tensors") for line in report.left)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("a") == BERT.index("a")


def test_ernie_is_plain_only_where_the_mask_is_zero(tmp_path: Path) -> None:
    """ERNIE's scripts unmask [CLS] with a zero vector in texts without entities: that is another computation."""
    tensors = published.ernie(tmp_path / "ernie")
    convert("ernie", tmp_path / "ernie", tmp_path / "out")
    ids, mask = words(len(BERT)), torch.zeros(LENGTH)
    mask[0] = 1
    nothing = torch.zeros(LENGTH, published.E)
    states, _ = states_and_scores(tmp_path / "out", ids)
    theirs = slow.ernie(tensors, published.ERNIE_KINDS, ids, HEADS, nothing, mask)
    assert (theirs[0] - states[0]).abs().max() > 0.01
    # The first layer that differs is the last one here, and the other tokens would see [CLS] in the next.
    torch.testing.assert_close(theirs[1:], states[1:], atol=3e-5, rtol=0)


# --- LUKE ---
@pytest.mark.parametrize("aware", [True, False])
def test_luke_as_archived(aware: bool, tokenizer: Path, tmp_path: Path) -> None:
    tensors = published.luke(tmp_path / "luke", aware)
    report = convert("luke", tmp_path / "luke", tmp_path / "out", tokenizer)
    ids = words(len(ROBERTA))
    states = slow.bert(tensors, "", ids, torch.arange(LENGTH) + 2, HEADS, 1e-5)
    scores = slow.roberta_scores(tensors, states, "embeddings.word_embeddings.weight")
    assert_same(tmp_path / "out", ids, states, scores)
    assert_stored(tmp_path / "out", tensors, "", "roberta.")
    assert report.left[0] == "entity table 30 x 16"
    assert any(line.startswith("queries between words and entities (18 tensors") for line in report.left) == aware
    assert "entity names in entity_vocab.tsv" in report.left
    assert not any(line.startswith("other tensors") for line in report.left)


def test_luke_in_deepspeeds_checkpoint(tokenizer: Path, tmp_path: Path) -> None:
    tensors = published.luke(tmp_path / "luke")
    torch.save({"module": tensors, "global_steps": 9}, tmp_path / "luke" / "pytorch_model.bin")
    report = convert("luke", tmp_path / "luke", tmp_path / "out", tokenizer)
    assert_stored(tmp_path / "out", tensors, "", "roberta.")
    assert "beside the tensors: global_steps" in report.left


def luke_of_transformers(folder: Path) -> LukeForMaskedLM:
    """A folder as transformers saves it, with LUKE's two further words and a tokenizer class of its own."""
    torch.manual_seed(0)
    size = len(ROBERTA) + 2
    settings = published.luke_config() | {"vocab_size": size, "initializer_range": 0.2, "pad_token_id": 1}
    model = LukeForMaskedLM(LukeConfig(**settings)).eval()
    with torch.no_grad():  # as in every LUKE that was trained; transformers 5 has these two apart
        model.lm_head.decoder.weight.copy_(model.luke.embeddings.word_embeddings.weight)
    model.save_pretrained(folder)
    published.roberta_tokenizer(folder)
    added = {"<ent>": len(ROBERTA), "<ent2>": len(ROBERTA) + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    tokens = {"additional_special_tokens": ["<ent>", "<ent2>"], "mask_token": "<mask>", "pad_token": "<pad>"}
    own = {"tokenizer_class": "LukeTokenizer", "task": None, "entity_mask_token": "[MASK]", "max_mention_length": 30}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | own))
    (folder / "entity_vocab.json").write_text(json.dumps({"[MASK]": 0}))
    return model


@pytest.mark.parametrize("prefix", [True, False], ids=["LukeForMaskedLM", "LukeModel"])
def test_luke_of_hugging_face(prefix: bool, tmp_path: Path) -> None:
    model = luke_of_transformers(tmp_path / "luke")
    if not prefix:  # the first folders on the hub: the bare model, pickled
        torch.save(model.luke.state_dict(), tmp_path / "luke" / "pytorch_model.bin")
        (tmp_path / "luke" / "model.safetensors").unlink()
    report = convert("luke", tmp_path / "luke", tmp_path / "out")
    ids = words(len(ROBERTA))
    with torch.no_grad():
        expected = model.luke(input_ids=ids[None]).last_hidden_state[0]
        found = AutoModel.from_pretrained(tmp_path / "out").eval()(input_ids=ids[None]).last_hidden_state[0]
        ours = load_encoder(tmp_path / "out").eval()(*pack([ids]))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(ours, expected, atol=3e-5, rtol=0)
    assert ("no MLM head" in report.kept) != prefix
    if prefix:
        with torch.no_grad():
            scores = model(input_ids=ids[None]).logits[0]
        torch.testing.assert_close(states_and_scores(tmp_path / "out", ids)[1], scores, atol=1e-4, rtol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForMaskedLM" if prefix else "RobertaModel"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer).__name__.startswith("Roberta")
    assert tokenizer.convert_tokens_to_ids("<ent2>") == len(ROBERTA) + 1


# --- DKPLM ---
@pytest.mark.parametrize(
    ("base", "outer", "know"),
    [("bert.", "", None), ("dkplm.", "", 7), ("dkplm.", "backbone.", 7)],
    ids=["hub", "EasyNLP", "trained by EasyNLP"],
)
def test_dkplm(base: str, outer: str, know: int | None, tmp_path: Path) -> None:
    tensors = published.dkplm(tmp_path / "dkplm", base, outer, know)
    report = convert("dkplm", tmp_path / "dkplm", tmp_path / "out")
    ids, prefix = words(len(BERT)), outer + base
    states = slow.bert(tensors, prefix, ids, torch.arange(LENGTH), HEADS, 1e-12)
    scores = slow.bert_scores(tensors, states, f"{prefix}embeddings.word_embeddings.weight", 1e-12, outer)
    assert_same(tmp_path / "out", ids, states, scores)
    assert_stored(tmp_path / "out", tensors, prefix, "bert.")
    assert report.left == ((f"projection of knowledge embeddings (2 tensors, {D * 7 + D} numbers)",) if know else ())
    assert any("the MLM head is as stored" in line for line in report.notes) == bool(know)


def test_the_report_says_when_nothing_is_left() -> None:
    assert str(Report("all", (), ("a note",))).splitlines() == ["kept: all", "left behind: nothing", "note: a note"]
