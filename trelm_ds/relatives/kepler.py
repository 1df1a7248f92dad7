"""KEPLER: RoBERTa trained on descriptions of entities as well, in fairseq.

Source: THU-KEG/KEPLER, which holds fairseq 0.8: `fairseq/models/roberta/model.py` (names, heads, what `args` says),
`transformer_sentence_encoder.py`, `transformer_sentence_encoder_layer.py`, `multihead_attention.py` (query, key and
value in one `in_proj_weight`, in this order), `learned_positional_embedding.py` and `layer_norm.py` of
`fairseq/modules/`, `fairseq/checkpoint_utils.py` and `fairseq/trainer.py` (what else a checkpoint holds; its meters are
objects of fairseq's classes). Later fairseq has separate `q_proj`, `k_proj`, `v_proj`, says `encoder.` for `decoder.`,
and `layernorm_embedding` for `emb_layer_norm`; these are read too.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.files import read_lines
from trelm_ds.model import EncoderConfig
from trelm_ds.relatives.plain import folder_shapes, head_targets
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.sizes import heads_of, sizes
from trelm_ds.relatives.taken import Taken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST = 4  # ids 0 to 3 are <s>, <pad>, </s>, <unk>; then come the lines of dict.txt, then <mask>
_USUAL_HEADS = {768: 12, 1024: 16}  # roberta_base and roberta_large
_LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_SPLIT = {"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value"}
_HEAD = ("dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias")  # in the order of head_targets
# args that fix sizes: (fairseq's name, Hugging Face's)
_SIZES = (
    ("encoder_layers", "num_hidden_layers"),
    ("encoder_embed_dim", "hidden_size"),
    ("encoder_ffn_embed_dim", "intermediate_size"),
)


class Kepler(Relative):
    """fairseq's RoBERTa, with KEPLER's head or without."""

    name = "kepler"
    title = "KEPLER"
    files = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
    mark = re.compile(r"^(decoder|encoder)\.sentence_encoder\.")
    left_behind = (
        (re.compile(r"^ke_heads\.\w+\.relation_emb\."), "relation embeddings"),
        (re.compile(r"^ke_heads\."), "constants of the knowledge embedding head"),
        (re.compile(r"^classification_heads\."), "classification heads"),
    )
    tokenizer_hint = "roberta-base's"

    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        side = "encoder" if "encoder.sentence_encoder.embed_tokens.weight" in taken else "decoder"
        base = f"{side}.sentence_encoder."
        arguments = _arguments(checkpoint)
        config, notes = self._config(checkpoint, taken, base, arguments, heads)
        tensors = _encoder(taken, config, base) | _head(taken, config, side)
        taken.ignore(r"^(decoder|encoder)\.(sentence_encoder\.)?version$")
        taken.refuse_unknown((base,), self.left_behind)
        # fairseq's RoBERTa has no token types; zeros add nothing.
        types = "roberta.embeddings.token_type_embeddings.weight"
        tensors[types] = torch.zeros(folder_shapes(config)[types])
        return Converted(config, tensors, (*notes, "exact: KEPLER's encoder is a RoBERTa"))

    def _config(
        self, checkpoint: Checkpoint, taken: Taken, base: str, arguments: dict[str, Any], heads: int | None
    ) -> tuple[EncoderConfig, list[str]]:
        word = f"{base}embed_tokens.weight"
        size, place, notes = taken.size(word, 1), f"{checkpoint.path}: args", []
        known = arguments.get("encoder_attention_heads")
        if known is None:
            known = heads_of(size, _USUAL_HEADS, heads, self.title)
            source = "--heads" if heads else "RoBERTa's"
            notes.append(f"{known} heads, as the checkpoint does not say it: {source}")
        activation = arguments.get("activation_fn")
        if activation is None:
            notes.append("gelu, as the checkpoint does not say it: fairseq's default for RoBERTa")
        elif activation != "gelu":
            raise UserError(f"{place}: activation_fn: only gelu has a place in a plain RoBERTa, got {activation!r:.40}")
        content = {
            "vocab_size": taken.size(word, 0),
            "hidden_size": size,
            "num_hidden_layers": taken.layers(re.escape(base) + r"layers\.(\d+)\."),
            "num_attention_heads": known,
            "intermediate_size": taken.size(f"{base}layers.0.fc1.weight", 0),
            "max_position_embeddings": taken.size(f"{base}embed_positions.weight", 0),
            "type_vocab_size": 1,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
            "hidden_dropout_prob": arguments.get("dropout", 0.1),
            "attention_probs_dropout_prob": arguments.get("attention_dropout", 0.1),
        }
        for theirs, ours in _SIZES:
            if arguments.get(theirs, content[ours]) != content[ours]:
                raise UserError(f"{place}: {theirs} {arguments[theirs]!r:.20} is not the tensors' {content[ours]}")
        notes.append("layer_norm_eps 1e-05, from fairseq's code")
        return sizes("roberta", content, place, heads), notes

    def check_tokenizer(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig
    ) -> None:
        """Compare token ids with dict.txt, line by line, where it stands beside the weights; <mask> is the last id."""
        if tokenizer.mask_token_id != config.vocab_size - 1:
            raise UserError(
                f"--tokenizer: its mask token has id {tokenizer.mask_token_id}, KEPLER's is {config.vocab_size - 1}, "
                f"the last; give {self.tokenizer_hint}"
            )
        dictionary = checkpoint.path.parent / "dict.txt"
        if dictionary.is_file():
            self._check_dictionary(dictionary, tokenizer)

    def _check_dictionary(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens, names = _gpt2_tokens(tokenizer), {number: name for name, number in tokenizer.get_vocab().items()}
        for line, text in read_lines(path):
            if not text.strip():
                continue
            number, symbol = line - 1 + _FIRST, text.rpartition(" ")[0]
            expected = tokens.get(int(symbol), symbol) if symbol.isdecimal() else symbol
            if names.get(number) != expected:
                raise UserError(
                    f"{path}:{line}: id {number} is '{expected[:40]}' there, '{names.get(number, '')[:40]}' in "
                    f"--tokenizer; give {self.tokenizer_hint}"
                )


def _arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return fairseq's arguments of the model: `args`, or `cfg.model` of later versions."""
    found = checkpoint.rest.get("args")
    if found is None and isinstance(checkpoint.rest.get("cfg"), dict):
        found = checkpoint.rest["cfg"].get("model")
    return vars(found) if isinstance(found, argparse.Namespace) else found if isinstance(found, dict) else {}


def _encoder(taken: Taken, config: EncoderConfig, base: str) -> dict[str, Tensor]:
    """Take embeddings and layers."""
    norm = f"{base}layernorm_embedding" if f"{base}layernorm_embedding.weight" in taken else f"{base}emb_layer_norm"
    own, shapes, place = "roberta.embeddings.", folder_shapes(config), "the rest of the checkpoint"
    names = {
        f"{own}word_embeddings.weight": f"{base}embed_tokens.weight",
        f"{own}position_embeddings.weight": f"{base}embed_positions.weight",
    }
    names |= {f"{own}LayerNorm.{kind}": f"{norm}.{kind}" for kind in ("weight", "bias")}
    fused: dict[str, Tensor] = {}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"roberta.encoder.layer.{i}.", f"{base}layers.{i}."
        for kind in ("weight", "bias"):
            names |= {f"{ours}{new}.{kind}": f"{theirs}{old}.{kind}" for old, new in _LAYER.items()}
            parts = [f"{ours}attention.self.{name}.{kind}" for name in _SPLIT.values()]
            whole = f"{theirs}self_attn.in_proj_{kind}"
            if whole in taken:
                rows, *rest = shapes[parts[0]]
                pieces = taken.one(whole, [3 * rows, *rest], place).chunk(3)
                fused |= dict(zip(parts, pieces, strict=True))
            else:
                names |= {name: f"{theirs}{old}.{kind}" for name, old in zip(parts, _SPLIT, strict=True)}
    return taken.take(names, shapes, place) | fused


def _head(taken: Taken, config: EncoderConfig, side: str) -> dict[str, Tensor]:
    """Take the MLM head, if there is one; its decoder must be the word embeddings."""
    names = {target: f"{side}.lm_head.{name}" for target, name in zip(head_targets(config), _HEAD, strict=True)}
    if not any(name in taken for name in names.values()):
        return {}
    taken.drop_copy(f"{side}.lm_head.weight", f"{side}.sentence_encoder.embed_tokens.weight")
    return taken.take(names, folder_shapes(config), "the rest of the checkpoint")


def _gpt2_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Number a byte-level BPE's tokens as GPT-2 does, by which dict.txt calls them: bytes, merges, end of text."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges", [])
    joined = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    return dict(enumerate([*bytes_to_unicode().values(), *joined, "<|endoftext|>"]))
