"""Random numbers of a training: each step's come from (seed, step), whatever was drawn before."""

from __future__ import annotations

import os

import numpy as np
import torch

_PHASES = ("weights", "train", "validation")


def repeatable() -> None:
    """Let torch choose algorithms that give the same digits each time, where it has any."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products are not repeatable
    torch.use_deterministic_algorithms(True, warn_only=True)


def seed_weights(seed: int) -> None:
    """Seed what initialises a network, before it is built; the same on every process."""
    _seed(_state(seed, 0, 0, "weights"))


def seed_step(seed: int, step: int, process: int, phase: str = "train") -> int:
    """Seed torch's and numpy's global generators, differently on each process, for one step in a phase of the training.

    Returns:
        the seed of the step's further random numbers, those that all processes share.
    """
    _seed(_state(seed, step, process + 1, phase))
    return int(_state(seed, step, 0, phase)[0])


def _state(seed: int, step: int, process: int, phase: str) -> np.ndarray:
    return np.random.SeedSequence((seed, step, process, _PHASES.index(phase))).generate_state(2)


def _seed(state: np.ndarray) -> None:
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - models may use numpy's global generator
