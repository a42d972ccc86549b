"""Whether the colours of the map can be told apart, by everyone and on both backgrounds."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

ASSETS = files("manyscope.explorer") / "assets"

# Machado, Oliveira & Fernandes, "A physiologically-based model for simulation of color vision deficiency" (IEEE TVCG
# 15 (6), 2009), at severity 1.0; of linear RGB.
SIGHTS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# IEC 61966-2-1 (sRGB, white D65).
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colours: list[str]) -> np.ndarray:
    """(n, 3), linear RGB of "#rrggbb"."""
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(colours: list[str], sight: str) -> np.ndarray:
    """(n, 3), CIE L*a*b* of colours as they are seen."""
    seen = np.clip(linear(colours) @ SIGHTS[sight].T, 0, 1)
    t = seen @ TO_XYZ.T / TO_XYZ.sum(1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def contrast(colours: list[str], ground: str) -> np.ndarray:
    """(n,), by the Web Content Accessibility Guidelines 2: 1 to 21."""
    light = linear([*colours, ground]) @ TO_XYZ[1] + 0.05
    return np.maximum(light[:-1], light[-1]) / np.minimum(light[:-1], light[-1])


def script(name: str, pattern: str) -> list[str]:
    found = re.search(pattern, (ASSETS / name).read_text(encoding="utf-8"), re.DOTALL)
    assert found, pattern
    return re.findall(r"#[0-9a-f]{6}", found[1])


PALETTE = script("core.js", r"const PALETTE = \[(.*?)\]")
SCALES = {theme: script("map.js", rf"const MAP_SCALES = {{.*?{theme}: \[(.*?)\]") for theme in ("light", "dark")}


def variables(name: str) -> list[str]:
    """A colour of page.css: light, then dark as the system asks and as the switch does."""
    return re.findall(rf"--{name}: (#[0-9a-f]{{6}})", (ASSETS / "page.css").read_text(encoding="utf-8"))


LIGHT, DARK = variables("back")[:2]


def test_the_colours_of_the_page_are_found() -> None:
    assert len(PALETTE) == len(set(PALETTE)) == 8
    assert [len(SCALES[theme]) for theme in ("light", "dark")] == [10, 10]
    for name in ("back", "grey", "faint"):
        _, system, switch = variables(name)
        assert system == switch


def test_the_simulation_knows_what_is_confused() -> None:
    def far(sight: str) -> float:
        return float(np.linalg.norm(np.subtract(*lab(["#d55e00", "#8e8e00"], sight))))

    assert far("protanopia") < 0.5 * far("usual")
    assert lab(["#ffffff"], "usual")[0] == pytest.approx([100, 0, 0], abs=0.01)


@pytest.mark.parametrize("sight", SIGHTS)
def test_levels_can_be_told_apart(sight: str) -> None:
    places = lab(PALETTE, sight)
    far = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(len(PALETTE), 1)]
    assert far.min() > 20  # CIE76; 2.3 is just noticeable side by side, dots lie apart


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("sight", SIGHTS)
def test_levels_are_no_missing_and_no_other_values(sight: str, theme: int) -> None:
    greys = lab([variables("grey")[theme], variables("faint")[theme]], sight)
    far = np.linalg.norm(lab(PALETTE, sight)[:, None] - greys[None], axis=2)
    assert far.min() > 15


@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_levels_are_seen_on_both_backgrounds(ground: str) -> None:
    # Eight colours that are far from each other cannot all be far from white and from black: 3 is out of reach.
    assert contrast(PALETTE, ground).min() >= 1.6


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(("theme", "ground"), [("light", LIGHT), ("dark", DARK)])
def test_greater_numbers_are_lighter(theme: str, ground: str, sight: str) -> None:
    assert np.diff(lab(SCALES[theme], sight)[:, 0]).min() > 1
    assert contrast(SCALES[theme], ground).min() >= 1.6
