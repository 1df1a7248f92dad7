"""Random numbers as a pure function of keys: no generator, no state, the same on every rank, worker and version.

The hash is SplitMix64's finalizer (Steele, Lea, Flood 2014), applied once per key.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@unique
class Stream(IntEnum):
    """What a random number is drawn for: a key that sets the draws of one purpose apart from all others."""

    BLOCK_ORDER = 1
    ORDER_IN_WINDOW = 2
    SUBSTITUTE = 3
    MASKED_WORD = 11
    MASK_KIND = 12
    RANDOM_TOKEN = 13
    DROPOUT = 21
    WEIGHTS = 22
    INJECTED_MENTION = 32
    TRIPLE = 33
    KEPT_FACT = 34
    INJECTED_WORD = 35
    NEGATIVE = 36
    ROUTED_FACT = 37
    ROUTED_SEQUENCE = 38
    KEPLER_TRIPLE = 41
    HELD_OUT_FACT = 42
    HELD_OUT_TEXT = 43
    FINETUNING_ORDER = 51
    KG_HELD_OUT = 61
    KG_TRIPLE_ORDER = 62
    KG_NEGATIVE = 63
    KG_INITIAL = 64
    KG_EVALUATED = 65


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def keyed_bits(*keys: int | np.ndarray, after: int | np.ndarray = 0) -> np.ndarray:
    """uint64 bits for the broadcast of non-negative integer keys; the order of the keys matters.

    Args:
        keys: broadcast against each other from the first on, so few numbers are hashed where they come first.
        after: the bits of keys that come before: `keyed_bits(a, b)` is `keyed_bits(b, after=keyed_bits(a))`.
    """
    state = np.asarray(after, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN)
    return state


def keyed_uniform(*keys: int | np.ndarray, after: int | np.ndarray = 0) -> np.ndarray:
    """float64 in [0, 1) for the keys, as `keyed_bits` reads them."""
    return (keyed_bits(*keys, after=after) >> np.uint64(11)) * 2.0**-53


def keyed_permutation(n: int, *keys: int) -> np.ndarray:
    """int64 [n]: a permutation of 0 ... n - 1."""
    return np.argsort(keyed_bits(*keys, np.arange(n)), kind="stable")
