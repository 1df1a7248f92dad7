"""Dataclasses of arrays, stored as one .npy file per field."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Self

import numpy as np

from trelm_ds.files import load_array


class Arrays:
    """Base of dataclasses whose fields are all numpy arrays."""

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for item in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            np.save(folder / f"{item.name}.npy", getattr(self, item.name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map what `save` wrote.

        Raises:
            UserError: an array is missing or damaged.
        """
        names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
        return cls(*(load_array(folder / f"{name}.npy") for name in names))
