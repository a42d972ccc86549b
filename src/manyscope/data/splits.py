"""Dealing samples to train, validation and test by a hash, so that an added sample never moves another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from manyscope.errors import DataError


def unit_hash(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the key alone; uniform over keys."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_hash(groups: Sequence[str], seed: int, validation_fraction: float, test_fraction: float) -> np.ndarray:
    """The split of each sample, (samples,) of "train", "validation" or "test"; a group is never divided.

    The fractions are of groups and hold on average, not exactly: exact counts would need every other group.

    Raises:
        DataError: the fractions leave nothing for training.
    """
    if validation_fraction + test_fraction >= 1:
        raise DataError(
            f"validation {validation_fraction} and test {test_fraction} leave nothing for training",
            place="preprocess.validation_fraction, preprocess.test_fraction",
            allowed="a sum below 1",
        )
    split = {}
    for group in set(groups):
        u = unit_hash(seed, group)
        split[group] = (
            "test" if u < test_fraction else "validation" if u < test_fraction + validation_fraction else "train"
        )
    return np.array([split[g] for g in groups], dtype=object)
