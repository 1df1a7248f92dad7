"""The map that brings a file's vectors nearest to the names of its entities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.injection.contexts import D, filled, open_context
from tests.injection.test_transe import ENTITY_IDS, W, arrays, vectors, write_npz
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.injection.projection import fitted_map
from trelm_ds.knowledge.tables import token_means


def test_a_linear_relation_is_found_whatever_the_means() -> None:
    draw = np.random.default_rng(0)
    inputs, true = draw.normal(size=(500, W)), draw.normal(size=(W, D))
    found = fitted_map((inputs + 7).astype(np.float32), (inputs @ true - 3).astype(np.float32))
    assert found.shape == (W, D)
    np.testing.assert_allclose(found, true / 1.01, rtol=0.02, atol=0.02)  # the ridge is a hundredth of the variance
    noise = np.linalg.lstsq(inputs - inputs.mean(0), draw.normal(size=(500, D)), rcond=None)[0]
    assert np.abs(found - true).max() < np.abs(noise).max()


@pytest.mark.parametrize("n", [1, 3])
def test_few_or_equal_vectors_give_a_finite_map(n: int) -> None:
    assert np.isfinite(fitted_map(np.ones((n, W)), np.ones((n, D)))).all()


def test_fitted_vectors_are_nearer_to_the_names_than_fixed_ones(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "v.npz")
    context = open_context(tiny_dataset, one_rank, source="transe", file=str(path), projection="fitted")
    names, rows = context.index.names, np.asarray(context.index.vector_entities)
    words = token_means(context.word, names.entity_offsets, names.entity_tokens)(torch.from_numpy(rows)).numpy()
    given = vectors(ENTITY_IDS)
    table = filled(context)
    np.testing.assert_allclose(table[: len(rows)], given @ fitted_map(given, words), atol=1e-6)
    centred = [part - part.mean(0) for part in (table[: len(rows)].numpy(), words)]
    assert (centred[0] * centred[1]).sum() > 0
    assert np.square(centred[0] - centred[1]).sum() < np.square(centred[1]).sum()


def test_vectors_without_a_named_entity_cannot_be_fitted(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "v.npz", arrays())
    context = open_context(tiny_dataset, one_rank, source="transe", file=str(path), projection="fitted")
    names = context.index.names
    object.__setattr__(names, "entity_offsets", np.zeros_like(names.entity_offsets))
    with pytest.raises(UserError, match="fitted, but no entity has a vector and a name"):
        filled(context)
