"""LUKE: RoBERTa with entities as further tokens, and an attention that knows which is which.

Source: studio-ousia/luke: `luke/model.py` and `luke/pretraining/model.py` (names), `luke/utils/model_utils.py` (the
archive: `pytorch_model.bin`, `metadata.json`, `entity_vocab.jsonl` or `.tsv`; RoBERTa's pad id),
`luke/pretraining/train.py` (what `metadata.json` says), `luke/utils/convert_luke_to_huggingface_model.py` (DeepSpeed's
checkpoints keep the tensors in `module`; Hugging Face's names, and its two more words, <ent> and <ent2>). Folders of
Hugging Face's first version have the encoder without a prefix, later ones behind `luke.`.
"""

from __future__ import annotations

import re

from trelm_ds.errors import UserError
from trelm_ds.relatives.plain import take_like_hf
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.sizes import read_beside, sizes
from trelm_ds.relatives.taken import Taken


class Luke(Relative):
    """The published archives, and Hugging Face's folders of LUKE and mLUKE."""

    name = "luke"
    title = "LUKE"
    files = ("pytorch_model.bin", "model.safetensors")
    mark = re.compile(r"(^|\.)entity_embeddings\.|^entity_predictions\.")
    left_behind = (
        (re.compile(r"^(luke\.)?entity_embeddings\.entity_embeddings\."), "entity table"),
        (re.compile(r"^(luke\.)?entity_embeddings\."), "what turns its rows into the encoder's inputs"),
        (re.compile(r"\.self\.(w2e|e2w|e2e)_query\."), "queries between words and entities"),
        (re.compile(r"^entity_predictions\.decoder\."), "entity prediction's decoder (the entity table again)"),
        (re.compile(r"^(cls_)?entity_predictions\."), "entity prediction heads"),
    )
    beside = (
        ("entity_vocab.jsonl", "entity names"),
        ("entity_vocab.tsv", "entity names"),
        ("entity_vocab.json", "entity names"),
    )
    tokenizer_hint = "that of the RoBERTa which it began from (bert_model_name)"

    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        place, content = read_beside(checkpoint, ("metadata.json", "config.json"), self.title)
        if place.name == "metadata.json":
            content = content.get("model_config", {})
            if not isinstance(content, dict):
                raise UserError(f"{place}: 'model_config' is no object of settings")
        began = content.get("bert_model_name")
        if began is not None and "roberta" not in str(began):
            raise UserError(
                f"{place}: bert_model_name: only a LUKE that began from a RoBERTa is read, got {began!r:.60}"
            )
        notes = ["exact for words without entities; with them LUKE's words also attend to entities"]
        if "layer_norm_eps" not in content:
            notes.insert(0, "layer_norm_eps 1e-05, as every published LUKE has it; its configuration does not say it")
        # LUKE's own loader sets RoBERTa's pad id, which the first metadata lacks.
        content = {"layer_norm_eps": 1e-5, "type_vocab_size": 1, **content, "pad_token_id": 1}
        config = sizes("roberta", content, place, heads)
        base = "luke." if "luke.embeddings.word_embeddings.weight" in taken else ""
        tensors = take_like_hf(taken, config, base, "", place.name)
        taken.refuse_unknown((f"{base}embeddings.", f"{base}encoder."), self.left_behind)
        return Converted(config, tensors, tuple(notes))
