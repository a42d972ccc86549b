"""Views of a panorama and the directions of their pixels.

A panorama is equirectangular, H x 2H pixels. Its middle column is at yaw 0, yaw grows to the right, pitch upwards. A
ray is a vector (x right, y up, z forward): yaw = atan2(x, z), pitch = atan2(y, hypot(x, z)). Within a view a place is
(u, v) from -1 to 1, u to the right, v downwards.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from manyscope.tables.whole import read_json, whole_file

_SMALL = 1e-9  # rounding, of unit rays and of places


@dataclass(frozen=True)
class View:
    """One view of a panorama.

    Attributes:
        kind: perspective, of a pinhole camera; or strip, a rectangle of the equirectangular picture itself.
        yaw_deg: of its middle, from -180 to 180.
        pitch_deg: of its middle.
        width_deg: horizontal field of view; of a strip, its width in yaw.
        height_deg: vertical field of view; of a strip, its height in pitch.
        is_global: whether it stands for the whole panorama beside others that are parts of it.
    """

    kind: Literal["perspective", "strip"]
    yaw_deg: float
    pitch_deg: float
    width_deg: float
    height_deg: float
    is_global: bool = False


@dataclass(frozen=True)
class Views:
    """All views of a panorama, in the order of their arrays.

    Attributes:
        views: the global one, if there is one, comes first.
        size_px: width and height of each.
        pixels: centres: pixel i of n is at u = (2 i + 1) / n - 1; borders: at u = 2 i / (n - 1) - 1.
    """

    views: tuple[View, ...]
    size_px: int
    pixels: Literal["centres", "borders"] = "centres"

    def __len__(self) -> int:
        return len(self.views)

    def token_places(self, grid: int) -> np.ndarray:
        """Middles of a grid of tokens, each of size_px / grid pixels, along one edge: (grid,) float64 in u or v."""
        middles = (np.arange(grid) + 0.5) * self.size_px / grid - 0.5
        if self.pixels == "centres":
            return (2 * middles + 1) / self.size_px - 1
        return 2 * middles / (self.size_px - 1) - 1

    def token_rays(self, grid: int) -> np.ndarray:
        """Unit rays of the tokens' middles, (views, grid, grid, 3) float64; rows downwards."""
        places = self.token_places(grid)
        v, u = np.meshgrid(places, places, indexing="ij")
        return np.stack([rays(view, u, v) for view in self.views])

    def save(self, path: Path) -> None:
        with whole_file(path) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Views:
        """
        Raises:
            DataError: the file is missing or broken.
        """
        values = read_json(path)
        return cls(tuple(View(**view) for view in values["views"]), values["size_px"], values["pixels"])


def rays(view: View, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unit rays through places of a view, (…, 3) float64.

    Args:
        u, v: of one shape (…); may be beyond -1 and 1.
    """
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    if view.kind == "strip":
        yaw = np.radians(view.yaw_deg + u * view.width_deg / 2)
        pitch = np.radians(view.pitch_deg - v * view.height_deg / 2)
        return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)], axis=-1)
    right, down = _half_sides(view)
    found = np.stack([u * right, -v * down, np.ones_like(u)], axis=-1) @ _turned(view).T
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def project(view: View, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in a view rays are seen: the inverse of `rays`.

    Args:
        directions: (…, 3), of any length but 0.

    Returns:
        places (u, v), (…, 2) float64; and whether they are inside of the view, (…,) bool. Behind a camera the place
        is not defined and finite.
    """
    directions = np.asarray(directions, np.float64)
    if view.kind == "strip":
        yaw_deg, pitch_deg = angles(directions)
        beside = (yaw_deg - view.yaw_deg + 180) % 360 - 180
        places = np.stack([beside / view.width_deg, (view.pitch_deg - pitch_deg) / view.height_deg], axis=-1) * 2
        ahead = np.ones(places.shape[:-1], bool)
    else:
        directions = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
        x, y, z = np.moveaxis(directions @ _turned(view), -1, 0)
        ahead = z > _SMALL
        right, down = _half_sides(view)
        depth = np.maximum(z, _SMALL)
        places = np.stack([x / depth / right, -y / depth / down], axis=-1)
    return places, ahead & np.all(np.abs(places) <= 1 + _SMALL, axis=-1)


def angles(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Yaw from -180 to 180 and pitch of rays (…, 3) of any length, in degrees."""
    x, y, z = np.moveaxis(np.asarray(directions, np.float64), -1, 0)
    return np.degrees(np.arctan2(x, z)), np.degrees(np.arctan2(y, np.hypot(x, z)))


def _half_sides(view: View) -> tuple[float, float]:
    """Half the width and height of a perspective view's picture at depth 1."""
    return math.tan(math.radians(view.width_deg) / 2), math.tan(math.radians(view.height_deg) / 2)


def _turned(view: View) -> np.ndarray:
    """(3, 3) from a perspective view's axes to the panorama's: pitch about x, then yaw about y."""
    yaw, pitch = math.radians(view.yaw_deg), math.radians(view.pitch_deg)
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    return about_y @ about_x
