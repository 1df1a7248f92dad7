"""How neurons lie in a row; the layer itself is compared with transformers' and, routed, in tests/routing."""

from __future__ import annotations

import torch

from trelm_ds.model import neuron_parts


def test_a_neuron_is_a_row() -> None:
    keys, key_bias, values = torch.randn(5, 3), torch.randn(5), torch.randn(5, 3)
    parts = neuron_parts(torch.cat([keys, key_bias[:, None], values], dim=1))
    assert list(parts) == ["keys", "key_bias", "values"]
    assert all(map(torch.equal, parts.values(), (keys, key_bias, values)))
