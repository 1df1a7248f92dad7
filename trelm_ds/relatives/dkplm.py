"""DKPLM: BERT whose long-tail entities were replaced by projected knowledge embeddings in pre-training.

Source: alibaba/EasyNLP: `easynlp/modelzoo/models/dkplm/modeling_dkplm.py` (names; without `insert_know_emb` it computes
a plain BERT, and so do its models for tasks) and `configuration_dkplm.py` beside it,
`easynlp/appzoo/language_modeling/model.py` (what it trains is behind `backbone.`) and `data.py` beside it (what
pre-training gives the MLM head). Of the model on Hugging Face's hub, alibaba-pai/pai-dkplm-medical-base-zh, its page
was seen, not its files: a BERT for fill-mask.
"""

from __future__ import annotations

import re

from trelm_ds.relatives.plain import take_like_hf
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.sizes import read_beside, sizes
from trelm_ds.relatives.taken import Taken

_WORD = "embeddings.word_embeddings.weight"


class Dkplm(Relative):
    """Names behind `bert.` (the hub) or `dkplm.` (EasyNLP), all of them behind `backbone.` in what EasyNLP trains."""

    name = "dkplm"
    title = "DKPLM"
    files = ("pytorch_model.bin", "model.safetensors")
    mark = re.compile(r"(^|\.)know_linear\.|^(backbone\.)?dkplm\.")
    left_behind = (
        (re.compile(r"(^|\.)know_linear\."), "projection of knowledge embeddings"),
        (re.compile(r"(^|\.)seq_relationship\."), "next sentence head"),
    )
    beside = (("entity_emb.txt", "knowledge embeddings"), ("rel_emb.txt", "knowledge embeddings"))
    tokenizer_hint = "the vocab.txt published with it (bert-base-chinese's for the medical model)"

    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        place, content = read_beside(checkpoint, ("config.json",), self.title)
        notes = ["exact where no knowledge is injected, as in DKPLM's own fine-tuning"]
        for name, value in (("layer_norm_eps", 1e-12), ("type_vocab_size", 2), ("pad_token_id", 0)):
            if name not in content:
                notes.append(f"{name} {value}, the default of DKPLM's code; {place.name} does not say it")
                content[name] = value
        config = sizes("bert", content, place, heads)
        outer = "backbone." if any(f"backbone.{base}{_WORD}" in taken for base in ("dkplm.", "bert.")) else ""
        base = outer + ("bert." if f"{outer}bert.{_WORD}" in taken else "dkplm.")
        tensors = take_like_hf(taken, config, base, outer, place.name)
        taken.refuse_unknown((f"{base}embeddings.", f"{base}encoder."), self.left_behind)
        if f"{outer}know_linear.weight" in taken:
            notes.append(
                "the MLM head is as stored; DkplmForMaskedLM multiplies its input by a projected relation, which a "
                "plain BERT does not"
            )
        return Converted(config, tensors, tuple(notes))
