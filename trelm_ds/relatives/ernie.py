"""ERNIE (Tsinghua): BERT whose upper layers mix entity embeddings in.

Source: thunlp/ERNIE: `code/knowledge_bert/modeling.py` (names, the three kinds of layers, `ernie_config.json` and
`pytorch_model.bin`), `code/run_pretrain.py`, `code/run_typing.py` and `code/example.py` (the mask of entities).

Layers "mix" and "norm" compute act(W x + b + W_e e + b_e) where a plain one computes act(W x + b), with e multiplied by
the mask of entities before. Without entities e is 0 for every token in every layer, and b_e remains: a plain BERT with
the bias b + b_e computes the same, up to the rounding of one addition.
"""

from __future__ import annotations

import re

from trelm_ds.errors import UserError
from trelm_ds.relatives.plain import take_like_hf
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.sizes import read_beside, sizes
from trelm_ds.relatives.taken import Taken

_MIXED = ("mix", "norm")  # of layer_types; "sim" and all layers beyond the list are plain


class Ernie(Relative):
    """`ernie_base`, and what its scripts save."""

    name = "ernie"
    title = "ERNIE"
    files = ("pytorch_model.bin",)
    mark = re.compile(r"\.dense_ent\.|\.self_ent\.|^cls\.predictions_ent\.")
    left_behind = (
        (re.compile(r"\.attention\.(self_ent|output_ent)\."), "attention among entities"),
        (re.compile(r"\.intermediate\.dense_ent\.weight$"), "entities' way into the feed-forward layers"),
        (re.compile(r"\.output\.(dense_ent|LayerNorm_ent)\."), "entities' way out of the feed-forward layers"),
        (re.compile(r"^cls\.predictions_ent\."), "entity prediction head"),
        (re.compile(r"^cls\.seq_relationship\."), "next sentence head"),
    )
    tokenizer_hint = "the vocab.txt published with it (bert-base-uncased's)"

    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        place, content = read_beside(checkpoint, ("ernie_config.json", "bert_config.json", "config.json"), self.title)
        # ERNIE's code has this epsilon in it and reads none.
        config = sizes("bert", {**content, "layer_norm_eps": 1e-12, "pad_token_id": 0}, place, heads)
        tensors = take_like_hf(taken, config, "bert.", "", place.name)
        mixed = [i for i in range(config.num_hidden_layers) if f"{_layer(i)}dense_ent.bias" in taken]
        self._check_kinds(mixed, content.get("layer_types"), f"{place}", config.num_hidden_layers)
        for i in mixed:
            name = f"{_layer(i)}dense_ent.bias"
            tensors[f"{_layer(i)}dense.bias"] = tensors[f"{_layer(i)}dense.bias"] + taken.one(
                name, [config.intermediate_size], place.name
            )
        taken.refuse_unknown(("bert.embeddings.", "bert.encoder."), self.left_behind)
        return Converted(
            config,
            tensors,
            (
                f"the bias that entities' projections leave in {len(mixed)} layers is added to those layers' own",
                "exact where the mask of entities is 0 for all tokens; ERNIE's scripts set it to 1 for [CLS] even then",
                "layer_norm_eps 1e-12, from ERNIE's code",
            ),
        )

    @staticmethod
    def _check_kinds(mixed: list[int], types: object, place: str, layers: int) -> None:
        """Compare the layers that have entity parts with `layer_types`, where the file has it."""
        if types is None:
            return
        if not isinstance(types, list) or len(types) > layers:
            raise UserError(f"{place}: layer_types: expected a list of at most {layers} kinds of layers")
        for i in range(layers):
            kind = types[i] if i < len(types) else "sim"
            if (kind in _MIXED) != (i in mixed):
                has = "has" if i in mixed else "lacks"
                raise UserError(
                    f"{place}: layer_types says '{kind!s:.20}' for layer {i}, which {has} a part for entities"
                )


def _layer(number: int) -> str:
    return f"bert.encoder.layer.{number}.intermediate."
