"""Source `file`: widths, number formats, and files that cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.injection.file import vectors_from_file
from trelm_ds.injection.projection import projection

ENTITIES, RELATIONS, D = 23, 4, 6


def translated() -> Tensor:
    """float32 [E + R, D]: entities 2 n + 1 (tails) are entity 2 n (heads) + relation n % R; nowhere near mean 0."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(ENTITIES + RELATIONS, D, generator=draw) * 3 + 5
    for head in range(0, ENTITIES - 1, 2):
        vectors[head + 1] = vectors[head] + vectors[ENTITIES + head // 2 % RELATIONS]
    return vectors


def fixed(seed: int, size: int = D) -> Callable[[int, object], np.ndarray | None]:
    return lambda width, read: projection(width, size, seed)


def write(path: Path, vectors: np.ndarray) -> Path:
    np.save(path, vectors)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_vectors_of_the_same_width_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    vectors = translated().numpy().astype(dtype)
    rows = np.array([5, 2, ENTITIES, 0])  # a table of some of the file's rows
    path = write(tmp_path / "v.npy", np.asfortranarray(vectors))
    found = vectors_from_file(path, ENTITIES, RELATIONS, rows, fixed(0))(torch.tensor([2, 0, 1]))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, vectors[[ENTITIES, 5, 2]].astype(np.float32))


@pytest.mark.parametrize("size", [4, 11])
def test_another_width_is_projected_linearly(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "v.npy", translated().numpy())
    everything = np.arange(ENTITIES + RELATIONS)
    vectors_of = vectors_from_file(path, ENTITIES, RELATIONS, everything, fixed(3, size))
    found = vectors_of(torch.from_numpy(everything))
    assert found.shape == (ENTITIES + RELATIONS, size)
    for head in range(0, ENTITIES - 1, 2):
        relation = found[ENTITIES + head // 2 % RELATIONS]
        torch.testing.assert_close(found[head] + relation, found[head + 1], rtol=0, atol=1e-4)
    if size >= D:  # orthonormal rows keep inner products
        torch.testing.assert_close(found @ found.T, translated() @ translated().T, rtol=1e-5, atol=1e-4)
    else:  # orthonormal columns: never longer
        assert bool((found.norm(dim=1) <= translated().norm(dim=1) + 1e-4).all())
        basis = torch.linalg.lstsq(translated(), found).solution
        torch.testing.assert_close(basis.T @ basis, torch.eye(size), rtol=0, atol=1e-5)
    again = vectors_from_file(path, ENTITIES, RELATIONS, everything, fixed(3, size))(torch.arange(4))
    torch.testing.assert_close(again, found[:4])
    other = vectors_from_file(path, ENTITIES, RELATIONS, everything, fixed(4, size))(torch.arange(4))
    assert not torch.allclose(other, found[:4])
    assert vectors_of(torch.zeros(0, dtype=torch.int64)).shape == (0, size)


def test_files_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    def open_file(path: Path) -> None:
        vectors_from_file(path, 2000, 3, np.arange(2003), fixed(0))

    path = tmp_path / "v.npy"
    with pytest.raises(UserError, match=r"injection.file .*v.npy: cannot be read: No such file"):
        open_file(path)
    for shape in ((2000, D), (2003,), (2003, 0), (2003, 2, 2)):
        with pytest.raises(UserError, match=r"has shape \[.*one row for each of 2,000 entities \+ 3 relations"):
            open_file(write(path, np.zeros(shape, np.float32)))
    for array in (np.zeros((2003, D), np.int64), np.zeros((2003, D), np.complex64), np.array(["a"])):
        with pytest.raises(UserError, match=r"v.npy: is .*; write an array of float16, float32 or float64"):
            open_file(write(path, array))
    with pytest.raises(UserError, match=r"not a .npy file of numbers \(.*write it with numpy.save"):
        open_file(write(path, np.array([{}], dtype=object)))  # would need pickle
    good = write(path, np.zeros((2003, D), np.float32)).read_bytes()
    for content in (b"", good[:40], good[:-1], b"nonsense", b"PK\x03\x04 nonsense"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"v.npy: not a .npy file of numbers"):
            open_file(path)
    np.savez(tmp_path / "v.npz", np.zeros((2003, D)))
    with pytest.raises(UserError, match=r"v.npz: not a .npy file of numbers"):
        open_file(tmp_path / "v.npz")


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_a_number_that_is_not_finite_is_named_when_its_row_is_read(tmp_path: Path, value: float) -> None:
    vectors = np.zeros((5, D))
    vectors[3, 2] = value
    rows = np.array([4, 3, 0, 1, 2])
    vectors_of = vectors_from_file(write(tmp_path / "v.npy", vectors), 4, 1, rows, fixed(0))
    assert len(vectors_of(torch.tensor([0, 2, 3, 4]))) == 4
    with pytest.raises(UserError, match=r"v.npy: row 3, counted from 0, is not finite in float32"):
        vectors_of(torch.tensor([0, 1]))
