"""A run keeps the pooler of the model it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tests.training.test_pretrain import config, train
from trelm_ds.checkpoints import export
from trelm_ds.distributed import Ranks
from trelm_ds.model import Pooler, load_pooler, load_pretrained, save_pretrained


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exports_have_the_pooler_that_the_run_started_from(
    precision: str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    train(config(max_steps=1), tiny_dataset, tmp_path / "first", one_rank)
    export(tmp_path / "first", tmp_path / "plain")
    assert load_pooler(tmp_path / "plain") is None
    model = load_pretrained(tmp_path / "plain")
    pooler = Pooler(model.config)
    save_pretrained(model, model.config, tmp_path / "start", tmp_path / "plain", pooler)

    for steps in (1, 2):  # the second goes on from the first's checkpoint
        settings = config(max_steps=steps)
        settings.model.init_from, settings.trainer.precision = str(tmp_path / "start"), precision
        train(settings, tiny_dataset, tmp_path / "run", one_rank)
        if steps == 1:  # what the folder holds later is another matter
            save_pretrained(model, model.config, tmp_path / "start", tmp_path / "plain", Pooler(model.config))
    export(tmp_path / "run", tmp_path / "model")
    exported = AutoModel.from_pretrained(tmp_path / "model").pooler.dense
    assert torch.equal(exported.weight, pooler.dense.weight)
    assert torch.equal(exported.bias, pooler.dense.bias)
