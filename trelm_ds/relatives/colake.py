"""CoLAKE: RoBERTa-base trained on words, entities and relations in one graph.

Source: txsun1997/CoLAKE: `pretrain/model.py` (the model's names), `pretrain/utils.py` and `pretrain/large_emb.py` (what
is saved: `model.bin` with all but the entities, `entities.npy` with those), `lama/model.py` (how its authors read text
without a graph: `RobertaForMaskedLM` with roberta-base's configuration and three token types),
`preprocess/gen_data.py` (positions in training).
"""

from __future__ import annotations

import re

from trelm_ds.relatives.plain import take_like_hf
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.sizes import heads_of, sizes
from trelm_ds.relatives.taken import Taken

_BASE = "roberta."
_LAYER = f"{_BASE}encoder.layer."


class Colake(Relative):
    """Words have token type 0, which is all that a plain RoBERTa folder uses of the table of three."""

    name = "colake"
    title = "CoLAKE"
    files = ("model.bin",)
    mark = re.compile(r"^(ent_lm_head|rel_lm_head|rel_embeddings)\.")
    left_behind = (
        (re.compile(r"^rel_embeddings\."), "relation embeddings"),
        (re.compile(r"^rel_lm_head\."), "relation prediction head (its decoder is the relation embeddings again)"),
        (re.compile(r"^ent_lm_head\."), "entity prediction head"),
        (re.compile(r"^ent_embeddings"), "entity embeddings"),
    )
    beside = (("entities.npy", "entity embeddings"),)
    tokenizer_hint = "roberta-base's"

    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        word, place = f"{_BASE}embeddings.word_embeddings.weight", checkpoint.path
        size = taken.size(word, 1)
        content = {
            "vocab_size": taken.size(word, 0),
            "hidden_size": size,
            "num_hidden_layers": taken.layers(re.escape(_LAYER) + r"(\d+)\."),
            "num_attention_heads": heads_of(size, {768: 12}, heads, self.title),
            "intermediate_size": taken.size(f"{_LAYER}0.intermediate.dense.weight", 0),
            "max_position_embeddings": taken.size(f"{_BASE}embeddings.position_embeddings.weight", 0),
            "type_vocab_size": taken.size(f"{_BASE}embeddings.token_type_embeddings.weight", 0),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        }
        config = sizes("roberta", content, place, heads)
        tensors = take_like_hf(taken, config, _BASE, "", "the rest of the checkpoint")
        taken.refuse_unknown((f"{_BASE}embeddings.", f"{_BASE}encoder."), self.left_behind)
        return Converted(
            config,
            tensors,
            (
                f"from CoLAKE's code, as the checkpoint does not say it: {config.num_attention_heads} heads"
                f"{'' if heads is None else ' (--heads)'}, gelu, layer_norm_eps 1e-05 (roberta-base)",
                "exact for text alone, as CoLAKE's LAMA script reads it; its training counts positions from 0, not 2",
            ),
        )
