"""Synthetic clips: photographs that move before a moving photograph, with every layer known.

Places are in pixels, (x, y) to the right and down; the centre of column i of row j is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.scenes.data.reading import read_frame, read_values, whole_array
from manyscope.scopes.scenes.data.sources import FRAMES, MASKS, TRUTH, RawClip
from manyscope.scopes.scenes.splines import basis
from manyscope.settings.code import module_digest
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import read_json, whole_file, write_json

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.scenes.settings import ScenesDownload, SyntheticSettings

SCENE = "scene.json"
_BACKGROUNDS = ("coffee", "rocket")
# What of each photograph is worth cutting out: its centre and height, as shares of the photograph's height.
_SUBJECTS = {"chelsea": (0.80, 0.50, 0.87), "astronaut": (0.44, 0.36, 0.72)}
_FINER = 2  # a picture has so many texels in a pixel, for bilinear interpolation to blur little
_PAN, _DRIFT, _ZOOM, _TURN = 0.25, 0.06, 0.10, math.radians(3)
_SPRITE_WIDTH, _SPRITE_HEIGHT, _GROWTH, _SPRITE_TURN = 0.35, 0.45, 0.15, math.radians(9)
_RAMP_PX, _RAMP_AT_PX = (6.0, 12.0), 240  # for frames of this height
_STAR_POINTS, _STAR_DEPTH = 5, 0.3
# Control points of the sprites' paths, in sizes of the frame: they cross the frame in opposite directions, and each
# other half-way, the second one behind.
_ACROSS = np.array([[0.25, 0.42, 0.58, 0.75], [0.78, 0.60, 0.40, 0.22]])
_DOWN = np.array([[0.56, 0.50, 0.60, 0.54], [0.40, 0.46, 0.40, 0.48]])
_JITTER = 0.02


@dataclass(frozen=True)
class SyntheticClip:
    """A drawn clip of T frames with O objects, the first of them the nearest.

    Attributes:
        frames: (T, H, W, 3) uint8.
        masks: (T, H, W) uint8, the number (1…O) of the nearest object whose opacity is at least a half, else 0; with
            the errors that the settings ask for.
        known: (T,) bool, False for the frames that are to have no mask.
        background: (T, H, W, 3) uint8, without objects.
        layers: (T, O, H, W, 4) uint8, each object alone: colour, not multiplied by it, and opacity.
        camera: (T, 3, 3), takes places of a frame to those of the first frame, on the background.
        motion: (T, O, 3, 3), takes places on an object's own picture to those of a frame, without the bending.
        order: object numbers (0…O-1) from the nearest to the farthest.
    """

    frames: np.ndarray
    masks: np.ndarray
    known: np.ndarray
    background: np.ndarray
    layers: np.ndarray
    camera: np.ndarray
    motion: np.ndarray
    order: np.ndarray


class Synthetic:
    """The drawn clip as a source: raw/frames/00000.png, raw/masks/00000.png, raw/truth/*.npy and raw/scene.json."""

    def download(self, settings: ScenesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Draw what is not there yet. scene.json says what the other files were drawn with, and is written first; with
        another one all are drawn again."""
        drawn = settings.synthetic
        stage = _Stage(settings.seed, drawn)
        frames = [f"{FRAMES}/{t:05d}.png" for t in range(drawn.frames)]
        masks = [f"{MASKS}/{t:05d}.png" for t in range(drawn.frames) if stage.known[t]]
        truth = [f"{TRUTH}/{name}.npy" for name in ("background", "camera", "layers", "motion", "order")]
        _begin(raw, stage.signature)
        if not all((raw / path).is_file() for path in (*frames, *masks, *truth)):
            stage.write(raw)
        source = f"synthetic, seed {settings.seed}"
        for path in (*frames, *masks, *truth, SCENE):
            yield ManifestEntry(path, source)

    def clip(self, settings: ScenesDownload, raw: Path, manifest: pl.DataFrame) -> RawClip:
        """
        Raises:
            DataError: the manifest names no frame.
        """
        paths = set(manifest["path"])
        indices = tuple(sorted(int(Path(path).stem) for path in paths if path.startswith(f"{FRAMES}/")))
        if not indices:
            raise DataError("the data set is empty", place=raw, remedy="run the stage 'download'")

        def masks(position: int) -> dict[int, np.ndarray] | None:
            path = f"{MASKS}/{indices[position]:05d}.png"
            if path not in paths:
                return None
            values = read_values(raw / path)
            return {number: values == number for number in range(1, settings.synthetic.sprites + 1)}

        return RawClip(
            source="synthetic",
            indices=indices,
            frame=lambda position: read_frame(raw / FRAMES / f"{indices[position]:05d}.png"),
            masks=masks,
            truth=raw / TRUTH,
            notes={"seed": settings.seed},
        )

    def problems(self, settings: ScenesDownload) -> Iterator[str]:
        yield from ()


def clip(seed: int, settings: SyntheticSettings) -> SyntheticClip:
    """Draw a clip; equal arguments give equal clips. All of it is in memory: with two sprites about
    14 bytes for each pixel of each frame."""
    stage = _Stage(seed, settings)
    drawn = [stage.draw(position) for position in range(settings.frames)]
    return SyntheticClip(
        frames=np.stack([d.frame for d in drawn]),
        masks=np.stack([d.mask for d in drawn]),
        known=stage.known,
        background=np.stack([d.background for d in drawn]),
        layers=np.stack([d.layers for d in drawn]),
        camera=stage.camera,
        motion=stage.motion,
        order=stage.order,
    )


@dataclass(frozen=True)
class _Drawn:
    frame: np.ndarray
    mask: np.ndarray
    background: np.ndarray
    layers: np.ndarray


class _Sprite:
    """A cut-out of a photograph; of nothing else than its own places (x, y) on its picture."""

    def __init__(self, rng: np.random.Generator, photo: np.ndarray, name: str, star: bool, height: int, width: int):
        self.width, self.height = max(4, round(_SPRITE_WIDTH * width)), max(4, round(_SPRITE_HEIGHT * height))
        centre_x, centre_y, share = _SUBJECTS.get(name, (0.5 * photo.shape[1] / photo.shape[0], 0.5, 0.9))
        box_height = min(share * photo.shape[0], photo.shape[1] * self.height / self.width, photo.shape[0])
        box = np.array([box_height * self.width / self.height, box_height])
        corner = np.array([centre_x, centre_y]) * photo.shape[0] - box / 2
        corner = corner.clip(0, np.array(photo.shape[1::-1]) - box)
        self.picture = _resized(photo, (*corner, *(corner + box)), self.width, self.height)
        self.ramp = rng.uniform(*_RAMP_PX) * height / _RAMP_AT_PX / ((self.width + self.height) / 4)
        self.star, self.turn, self.phase = star, rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)

    def alpha(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = 2 * x / self.width - 1, 2 * y / self.height - 1
        edge: np.ndarray | float = 1.0
        if self.star:
            edge = 1 - _STAR_DEPTH / 2 * (1 - np.cos(_STAR_POINTS * np.arctan2(v, u) + self.turn))
        return ((edge - np.hypot(u, v)) / self.ramp).clip(0, 1)


class _Stage:
    """Everything that is drawn by chance, once for the clip, and then each frame by itself."""

    def __init__(self, seed: int, settings: SyntheticSettings) -> None:
        height, width, count = settings.height_px, settings.width_px, settings.frames
        self.settings, self.height, self.width = settings, height, width
        self.seconds = np.linspace(0, 1, count)
        photographs, origin = _photographs(seed)
        self.signature = {
            "seed": seed,
            "settings": settings.model_dump(mode="json"),
            "photographs": origin,
            "code": module_digest(__name__),
        }
        rng = np.random.default_rng((seed, 0))
        mirrored = bool(rng.integers(2))
        views = _views(rng, settings, self.seconds, mirrored)
        name = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
        self.views, self.canvas = _canvas(views, photographs[name], height, width)
        self.camera = np.linalg.inv(self.views[0]) @ self.views
        names = list(rng.permutation(list(_SUBJECTS)))
        star = int(rng.integers(2))
        self.sprites = [
            _Sprite(rng, photographs[names[i]], names[i], i == star, height, width) for i in range(settings.sprites)
        ]
        self.order = np.arange(settings.sprites)
        self.motion = np.zeros((count, settings.sprites, 3, 3))
        for i, sprite in enumerate(self.sprites):
            self.motion[:, i] = self._motion(rng, i, sprite, mirrored)
        errors = np.random.default_rng((seed, 1))
        self.grown = errors.choice((-1, 1), (count, settings.sprites)) * settings.mask_error_px
        self.known = np.ones(count, bool)
        self.known[errors.permutation(count)[: round(settings.mask_drop_fraction * count)]] = False

    def _motion(self, rng: np.random.Generator, number: int, sprite: _Sprite, mirrored: bool) -> np.ndarray:
        path = np.stack([_ACROSS[number], _DOWN[number]], axis=1) + rng.uniform(-_JITTER, _JITTER, (4, 2))
        if mirrored:
            path[:, 0] = 1 - path[:, 0]
        centre = basis(self.seconds, len(path)) @ path * (self.width, self.height)
        angle = _SPRITE_TURN * np.sin(2 * math.pi * self.seconds + sprite.phase)
        return _similarity((sprite.width / 2, sprite.height / 2), 1 + _GROWTH * self.seconds, angle, centre)

    def draw(self, position: int) -> _Drawn:
        x, y = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        background = _sampled(self.canvas, *_moved(self.views[position], x, y))
        frame = background.copy()
        layers = np.zeros((len(self.sprites), self.height, self.width, 4), np.uint8)
        mask = np.zeros((self.height, self.width), np.uint8)
        for number in self.order[::-1]:
            here = self._around(number, position)
            colour, alpha = self._layer(number, position, x[here], y[here])
            frame[here] += alpha[..., None] * (colour - frame[here])
            layers[number][here] = _bytes(np.dstack([colour * (alpha[..., None] > 0), alpha]))
            opaque = np.zeros(mask.shape, bool)
            opaque[here] = alpha >= 0.5
            mask[_grown(opaque, self.grown[position, number])] = number + 1
        return _Drawn(_bytes(frame), mask, _bytes(background), layers)

    def _layer(self, number: int, position: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sprite, time = self.sprites[number], self.seconds[position]
        x, y = _moved(np.linalg.inv(self.motion[position, number]), x, y)
        x = x + self.settings.bend_px * np.sin(2 * math.pi * (y / sprite.height + time))
        light = 1 + self.settings.brightness * math.sin(2 * math.pi * time + sprite.phase)
        return (_sampled(sprite.picture, x, y) * light).clip(0, 1), sprite.alpha(x, y)

    def _around(self, number: int, position: int) -> tuple[slice, slice]:
        """Rows and columns of a frame outside of which the sprite is not."""
        sprite, bend = self.sprites[number], self.settings.bend_px
        x, y = np.array([-bend, sprite.width + bend] * 2), np.array([0, 0, sprite.height, sprite.height])
        x, y = _moved(self.motion[position, number], x, y)
        ends = [(math.floor(v.min()) - 1, math.ceil(v.max()) + 1) for v in (y, x)]
        return slice(max(0, ends[0][0]), max(0, ends[0][1])), slice(max(0, ends[1][0]), max(0, ends[1][1]))

    def write(self, raw: Path) -> None:
        count, sprites, size = len(self.seconds), len(self.sprites), (self.height, self.width)
        with ExitStack() as stack:
            background = stack.enter_context(whole_array(raw / TRUTH / "background.npy", np.uint8, (count, *size, 3)))
            layers = stack.enter_context(whole_array(raw / TRUTH / "layers.npy", np.uint8, (count, sprites, *size, 4)))
            for position in progress(range(count), "draw"):
                drawn = self.draw(position)
                background[position], layers[position] = drawn.background, drawn.layers
                _write_png(raw / FRAMES / f"{position:05d}.png", drawn.frame)
                if self.known[position]:
                    _write_png(raw / MASKS / f"{position:05d}.png", drawn.mask)
        for name, values in (("camera", self.camera), ("motion", self.motion), ("order", self.order)):
            with whole_array(raw / TRUTH / f"{name}.npy", values.dtype.type, values.shape) as array:
                array[:] = values


def _views(rng: np.random.Generator, settings: SyntheticSettings, times: np.ndarray, mirrored: bool) -> np.ndarray:
    """Takes places of each frame to a background of which nothing is known yet, (T, 3, 3)."""
    height, width = settings.height_px, settings.width_px
    drift, sway = rng.uniform(0, 2 * math.pi, 2)
    across = _PAN * width * (-times if mirrored else times)
    centre = np.stack([across, _DRIFT * height * np.sin(2 * math.pi * times + drift)], axis=1)
    nearer = 1 + _ZOOM * times * (settings.camera != "pan")
    angle = _TURN * np.sin(2 * math.pi * times + sway) * (settings.camera == "handheld")
    return _similarity((width / 2, height / 2), 1 / nearer, angle, centre)


def _canvas(views: np.ndarray, photo: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The views on a picture of the photograph that is just large enough for all of them, and the picture."""
    x, y = (views @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]]))[:, :2].swapaxes(0, 1)
    shift = np.eye(3)
    shift[:2, 2] = 1 - x.min(), 1 - y.min()
    size = math.ceil(np.ptp(x)) + 2, math.ceil(np.ptp(y)) + 2
    scale = min(photo.shape[1] / size[0], photo.shape[0] / size[1])
    margin = (np.array(photo.shape[1::-1]) - np.array(size) * scale) / 2
    box = (*margin, *(margin + np.array(size) * scale))
    return shift @ views, _resized(photo, box, *size)


def _similarity(origin: tuple[float, float], scale: np.ndarray, angle: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Turns by the angles (radians, x towards y) and scales about the origin, which comes to the targets: (n, 3, 3)."""
    matrix = np.zeros((len(target), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * np.cos(angle)
    matrix[:, 1, 0] = scale * np.sin(angle)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, :2, 2] = target - matrix[:, :2, :2] @ np.array(origin)
    matrix[:, 2, 2] = 1
    return matrix


def _moved(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (a, b, c), (d, e, f) = matrix[:2]
    return a * x + b * y + c, d * x + e * y + f


def _sampled(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Colours at places in pixels of a picture that is _FINER than those; outside, those of its edge."""
    from scipy.ndimage import map_coordinates

    places = np.stack([y, x]) * _FINER - 0.5
    return np.dstack([map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)])


def _resized(photo: np.ndarray, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """A part of a photograph without details that pixels could not show, with _FINER texels, float64 in [0, 1]."""
    from PIL import Image

    inside = np.clip(box, 0, (photo.shape[1], photo.shape[0]) * 2).tolist()  # rounding errors alone are outside
    small = Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS, box=inside)
    return np.asarray(small.resize((_FINER * width, _FINER * height), Image.Resampling.BICUBIC)) / 255


def _grown(mask: np.ndarray, by_px: int) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    if by_px > 0 and mask.any():
        return distance_transform_edt(~mask) <= by_px
    if by_px < 0:
        return distance_transform_edt(mask) > -by_px
    return mask


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255).clip(0, 255).astype(np.uint8)


def _photographs(seed: int) -> tuple[dict[str, np.ndarray], str]:
    """The photographs by name, (h, w, 3) uint8, and where they are from."""
    names = (*_BACKGROUNDS, *_SUBJECTS)
    try:
        from skimage import data

        return {name: np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in names}, "scikit-image"
    except (ImportError, OSError, ValueError, AttributeError) as error:
        logger.warning("the photographs of scikit-image are not there (%s); clouds of colour take their place", error)
    return {name: _clouds(np.random.default_rng((seed, 2, i))) for i, name in enumerate(names)}, "clouds"


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise of several sizes, (400, 600, 3) uint8."""
    from scipy.ndimage import gaussian_filter

    total = np.zeros((400, 600, 3))
    for sigma in (40, 15, 5, 1.5):
        layer = gaussian_filter(rng.normal(size=total.shape), (sigma, sigma, 0), mode="wrap")
        total += math.sqrt(sigma) * layer / layer.std()
    return _bytes(0.5 + 0.2 * total / total.std())


def _begin(raw: Path, signature: dict[str, Any]) -> None:
    """Let scene.json be of these settings; files of others go first."""
    file = raw / SCENE
    with suppress(DataError):  # a broken one is as good as none
        if file.is_file() and read_json(file) == signature:
            return
    file.unlink(missing_ok=True)
    for folder in (FRAMES, MASKS, TRUTH):
        for stale in (*(raw / folder).glob("*.png"), *(raw / folder).glob("*.npy")):
            stale.unlink()
    write_json(file, signature)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    if not path.is_file():
        with whole_file(path) as partial:
            Image.fromarray(pixels).save(partial, format="PNG")
