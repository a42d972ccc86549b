from __future__ import annotations

import cmath
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from manyscope.scopes.scenes.data.placing import place
from manyscope.scopes.scenes.data.placing.align import Similarity, bilinear, grid
from manyscope.scopes.scenes.data.placing.camera import CameraPath
from manyscope.scopes.scenes.data.placing.objects import reference_depths
from manyscope.scopes.scenes.placement import Placement
from manyscope.scopes.scenes.settings import PlacementSettings
from manyscope.scopes.scenes.splines import basis

HEIGHT, WIDTH, FRAMES = 60, 80, 9
TRAINED = np.array([0, 2, 4, 6, 8])
HELD_OUT = np.array([1, 3, 5, 7])
Motion = Callable[[float], Similarity]


def still(time: float) -> Similarity:
    return Similarity()


def moving(x: float, y: float, turn: float = 0.0, growth: float = 0.0, at: complex = 0j) -> Motion:
    """From `at`, so far within the clip."""
    return lambda time: Similarity(cmath.rect((1 + growth) ** time, turn * time), at + complex(x, y) * time)


def texture(seed: int, edge: int = 220, smooth: float = 2.0) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(edge, edge, 3)), (smooth, smooth, 0))
    return np.clip(0.5 + 0.2 * noise / noise.std(), 0, 1)


def look(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Colours of a picture at places from its middle."""
    rows, columns = (places.imag + picture.shape[0] / 2 - 0.5, places.real + picture.shape[1] / 2 - 0.5)
    return np.stack(
        [ndimage.map_coordinates(picture[..., c], [rows, columns], order=3, mode="nearest") for c in range(3)], -1
    )


@dataclass
class Drawn:
    """A clip whose camera (a frame to the first) and objects (own places to a frame) move as given, nearest first."""

    camera: Motion
    objects: tuple[Motion, ...] = ()
    radius: tuple[float, float] = (13, 10)
    seed: int = 0

    def __post_init__(self) -> None:
        self.times = np.linspace(0, 1, FRAMES)
        self.background = texture(self.seed)
        self.places = grid(HEIGHT, WIDTH)
        self.frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        self.masks = np.zeros((FRAMES, len(self.objects), HEIGHT, WIDTH), np.uint8)
        self.known = np.ones((FRAMES, len(self.objects)), bool)
        skins = [texture(self.seed + 1 + number, 80, 1.5) for number in range(len(self.objects))]
        for t, time in enumerate(self.times):
            image = look(self.background, self.camera(time)(self.places))
            for number in reversed(range(len(self.objects))):
                own = self.objects[number](time).inverse()(self.places)
                inside = (own.real / self.radius[0]) ** 2 + (own.imag / self.radius[1]) ** 2 <= 1
                image[inside] = look(skins[number], own)[inside]
                self.masks[t, :, inside] = 0
                self.masks[t, number, inside] = 255
            self.frames[t] = np.clip(np.rint(image * 255), 0, 255)

    def place(self, **more: object) -> Placement:
        wanted = {"settings": PlacementSettings(), **more}
        return place(self.frames, self.masks, self.known, self.times, TRAINED, **wanted)  # type: ignore[arg-type]


def pose(position: np.ndarray, rotation: np.ndarray, time: float) -> tuple[np.ndarray, Rotation]:
    weights = basis(np.array([time]), len(position))[0]
    return weights @ position, Rotation.from_quat(weights @ rotation, scalar_first=True)


def project(placed: Placement, points: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in a frame, complex from its middle, and depths."""
    at, turn = pose(placed.camera_position, placed.camera_rotation, time)
    x, y, z = turn.inv().apply(points - at).T
    return placed.focal * WIDTH * (x + 1j * y) / z, z


def on_background(placed: Placement, places: np.ndarray, time: float) -> np.ndarray:
    """Points of the background that are at places in a frame."""
    at, turn = pose(placed.camera_position, placed.camera_rotation, time)
    f = placed.focal * WIDTH
    rays = turn.apply(np.stack([places.real / f, places.imag / f, np.ones(len(places))], axis=1))
    normal = Rotation.from_quat(placed.background_rotation, scalar_first=True).apply([0.0, 0.0, 1.0])
    return at + (((placed.background_position - at) @ normal) / (rays @ normal))[:, None] * rays


FRAME_CORNERS = np.array([-WIDTH - 1j * HEIGHT, WIDTH - 1j * HEIGHT, WIDTH + 1j * HEIGHT, -WIDTH + 1j * HEIGHT]) / 2


def camera_errors(placed: Placement, drawn: Drawn) -> np.ndarray:
    """In pixels at the corners of each frame, brought to the first."""
    return np.array(
        [
            np.abs(
                project(placed, on_background(placed, FRAME_CORNERS, time), 0.0)[0]
                - drawn.camera(0.0).inverse().after(drawn.camera(time))(FRAME_CORNERS)
            ).max()
            for time in drawn.times
        ]
    )


def object_corners(placed: Placement, number: int, time: float) -> tuple[np.ndarray, np.ndarray]:
    at, turn = pose(placed.object_position[number], placed.object_rotation[number], time)
    width, height = placed.object_size[number] / 2
    local = np.array([[-width, -height, 0], [width, -height, 0], [width, height, 0], [-width, height, 0]])
    return project(placed, at + turn.apply(local), time)


def object_errors(placed: Placement, drawn: Drawn, number: int) -> np.ndarray:
    """In pixels at the corners of the object's plane, against the plane of its reference frame moved as is true."""
    motion = drawn.objects[number]
    reference = drawn.times[placed.object_reference[number]]
    first = object_corners(placed, number, reference)[0]
    return np.array(
        [
            np.abs(
                object_corners(placed, number, time)[0] - motion(time).after(motion(reference).inverse())(first)
            ).max()
            for time in drawn.times
        ]
    )


def depths(placed: Placement) -> np.ndarray:
    """(objects, frames) of the middles of the planes."""
    return np.array(
        [
            [object_corners(placed, number, time)[1].mean() for time in np.linspace(0, 1, FRAMES)]
            for number in range(placed.objects)
        ]
    )


@pytest.mark.parametrize(
    "camera",
    [moving(14, 4), moving(2, -1, growth=-0.12), moving(3, 2, turn=0.1), moving(-8, 3, turn=-0.06, growth=0.1)],
    ids=["pan", "zoom", "roll", "all"],
)
def test_the_motion_of_the_camera_is_recovered_at_held_out_times_too(camera: Motion) -> None:
    drawn = Drawn(camera)
    errors = camera_errors(drawn.place(), drawn)
    assert errors.max() < 0.3, errors


def test_the_world_is_that_of_the_camera_at_the_first_frame() -> None:
    placed = Drawn(moving(10, 3, turn=0.05)).place()
    position, turn = pose(placed.camera_position, placed.camera_rotation, 0.0)
    assert np.abs(position).max() < 3e-3
    assert turn.magnitude() < 3e-3
    assert placed.camera_position.shape == (4, 3)  # half of nine frames


def test_the_motion_of_an_object_is_recovered_at_held_out_times_too() -> None:
    drawn = Drawn(moving(12, 3), (moving(28, 6, turn=0.2, growth=0.2, at=-14 - 4j),))
    placed = drawn.place()
    assert camera_errors(placed, drawn).max() < 0.4
    assert object_errors(placed, drawn, 0).max() < 0.8
    assert placed.object_rotation.shape == (1, 4, 4)
    assert np.allclose(np.linalg.norm(placed.object_rotation, axis=-1), 1)


def test_the_picture_of_an_object_is_what_its_reference_frame_shows() -> None:
    drawn = Drawn(still, (moving(20, 0, at=-10),))
    placed = drawn.place()
    picture, time = placed.object_pictures[0], drawn.times[placed.object_reference[0]]
    assert picture.dtype == np.float32
    assert picture[..., 3].min() == pytest.approx(0.02)
    assert picture[..., 3].max() == pytest.approx(0.98)
    corners = object_corners(placed, 0, time)[0]
    rows, columns = picture.shape[:2]
    # One texel for each pixel of the reference frame.
    assert abs(corners[1] - corners[0]) == pytest.approx(columns, abs=0.1)
    own = grid(rows, columns) + corners.mean()
    frame = drawn.frames[placed.object_reference[0]]
    shown = bilinear(frame, own.real.ravel() + WIDTH / 2 - 0.5, own.imag.ravel() + HEIGHT / 2 - 0.5).reshape(
        rows, columns, 3
    )
    core = ndimage.binary_erosion(picture[..., 3] > 0.9, iterations=3)
    assert np.abs(picture[..., :3] - shown / 255)[core].mean() < 0.02
    # Nothing of the background is in the colours outside.
    inside = picture[core][:, :3]
    assert picture[..., :3].min() >= inside.min() - 0.1
    assert picture[..., :3].max() <= inside.max() + 0.1


def test_the_background_is_seen_behind_the_object() -> None:
    drawn = Drawn(moving(10, 0), (moving(40, 0, at=-22),))
    placed = drawn.place()
    rows, columns = placed.background_picture.shape[:2]
    turn = Rotation.from_quat(placed.background_rotation, scalar_first=True)
    differences, shares = [], []
    for time in drawn.times:
        where = turn.inv().apply(on_background(placed, grid(HEIGHT, WIDTH).ravel(), time) - placed.background_position)
        uv = where[:, :2] / placed.background_size + 0.5
        assert uv.min() > 0
        assert uv.max() < 1
        x, y = uv[:, 0] * columns - 0.5, uv[:, 1] * rows - 0.5
        seen = placed.background_seen[np.rint(y).astype(int), np.rint(x).astype(int)]
        truth = look(drawn.background, drawn.camera(time)(drawn.places)).reshape(-1, 3)
        differences.append((bilinear(placed.background_picture, x, y) - truth)[seen])
        shares.append(seen.mean())
    assert np.mean(shares) > 0.97
    assert 10 * np.log10(1 / np.mean(np.concatenate(differences) ** 2)) > 32
    assert np.isfinite(placed.background_picture).all()


def test_the_object_that_hides_the_other_is_nearer() -> None:
    crossing = (moving(36, 0, at=-18 - 3j), moving(-36, 0, at=18 - 1j))
    for first, drawn in ((0, Drawn(still, crossing)), (1, Drawn(still, crossing))):
        if first == 1:  # the same, numbered the other way
            drawn.masks = np.ascontiguousarray(drawn.masks[:, ::-1])
        near = depths(drawn.place())
        assert near[first].max() < near[1 - first].min()
        assert near.min() > 0


def test_without_evidence_the_lower_object_is_nearer() -> None:
    drawn = Drawn(still, (moving(4, 0, at=-20 - 14j), moving(-4, 0, at=20 + 14j)))
    near = depths(drawn.place())
    assert near[1].max() < near[0].min()


def test_depth_decides_the_order_and_the_distance() -> None:
    drawn = Drawn(still, (moving(4, 0, at=-20 - 14j), moving(-4, 0, at=20 + 14j)))
    depth = np.full((FRAMES, HEIGHT, WIDTH), 10.0)
    depth[drawn.masks[:, 0] > 0], depth[drawn.masks[:, 1] > 0] = 3.0, 6.0
    near = depths(drawn.place(depth=depth))
    assert near.mean(axis=1) == pytest.approx([0.3 * 1.5, 0.6 * 1.5], rel=0.03)
    # Of depth that is not all above 0 the order alone counts.
    near = depths(drawn.place(depth=depth - 5))
    assert near[0].max() < near[1].min()


def test_an_object_that_leaves_the_frame_goes_on_at_its_speed() -> None:
    drawn = Drawn(still, (moving(70, 0, at=-5),))
    errors = object_errors(drawn.place(), drawn, 0)
    assert errors[:4].max() < 0.8
    gone = [t for t in range(FRAMES) if not drawn.masks[t, 0].any()]
    assert gone
    assert errors[gone].max() < 4


def test_an_object_that_the_border_cuts_is_followed_by_its_inside() -> None:
    drawn = Drawn(moving(4, 0), (moving(24, 0, turn=0.1, at=-36),))  # comes in from the left
    errors = object_errors(drawn.place(), drawn, 0)
    assert errors.max() < 1.0


def test_frames_without_known_masks_are_bridged() -> None:
    drawn = Drawn(moving(8, 0), (moving(30, 5, at=-15),))
    truth = drawn.masks.copy()
    drawn.known[4] = False
    drawn.masks[4] = 0
    placed = drawn.place()
    assert object_errors(placed, drawn, 0).max() < 1.0
    assert camera_errors(placed, drawn).max() < 0.4
    assert placed.object_reference[0] != 4
    assert truth[4].any()


def test_an_absent_object_is_bridged_and_a_never_seen_one_is_transparent(caplog: pytest.LogCaptureFixture) -> None:
    drawn = Drawn(still, (moving(24, 0, at=-12), moving(0, 0, at=500)))
    drawn.masks[4, 0] = 0
    with caplog.at_level(logging.WARNING, logger="manyscope"):
        logging.getLogger("manyscope").addHandler(caplog.handler)
        placed = drawn.place()
        logging.getLogger("manyscope").removeHandler(caplog.handler)
    assert object_errors(placed, drawn, 0).max() < 1.0
    assert placed.object_pictures[1][..., 3].max() == pytest.approx(0.02)
    assert "object 2 of 2" in caplog.text
    assert np.isfinite(placed.object_position).all()


def test_a_clip_without_objects() -> None:
    placed = Drawn(moving(5, 0)).place()
    assert placed.objects == 0
    assert placed.object_position.shape == (0, 4, 3)
    assert placed.object_rotation.shape == (0, 4, 4)
    assert placed.object_size.shape == (0, 2)
    assert placed.object_reference.shape == (0,)


def test_a_mask_that_covers_everything_leaves_no_background_but_a_placement() -> None:
    drawn = Drawn(moving(5, 0), (still,))
    drawn.masks[:] = 255
    placed = drawn.place()
    assert not placed.background_seen.any()
    assert np.isfinite(placed.background_picture).all()
    assert np.isfinite(placed.camera_position).all()
    assert np.isfinite(placed.object_position).all()


def test_a_single_training_frame_is_placed() -> None:
    drawn = Drawn(still, (moving(0, 0),))
    placed = place(drawn.frames[:1], drawn.masks[:1], drawn.known[:1], np.zeros(1), [0], PlacementSettings())
    assert placed.camera_position.shape == (1, 3)
    assert placed.background_seen.any()


def test_frames_of_one_colour_are_placed_without_motion() -> None:
    drawn = Drawn(still)
    drawn.frames[:] = 90
    placed = drawn.place()
    assert np.abs(placed.camera_position).max() < 1e-6
    assert placed.background_picture[placed.background_seen] == pytest.approx(90 / 255, abs=1e-3)


def test_nothing_of_the_held_out_frames_is_looked_at() -> None:
    drawn = Drawn(moving(10, 2), (moving(28, 6, at=-14 - 4j),))
    depth = np.ones((FRAMES, HEIGHT, WIDTH), np.float32) + (drawn.masks[:, 0] == 0)
    before = drawn.place(depth=depth)
    rng = np.random.default_rng(1)
    drawn.frames[HELD_OUT] = rng.integers(0, 255, drawn.frames[HELD_OUT].shape)
    drawn.masks[HELD_OUT] = rng.integers(0, 255, drawn.masks[HELD_OUT].shape)
    drawn.known[HELD_OUT] = False
    depth[HELD_OUT] = np.nan
    after = drawn.place(depth=depth)
    for name in ("camera_position", "camera_rotation", "background_picture", "object_position", "object_size"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert np.array_equal(before.object_pictures[0], after.object_pictures[0])


def _filmed(path: CameraPath, distance: float, drawn: Drawn) -> None:
    """Draw the background as the camera sees a plane before its first pose."""
    position, turn = path.at(drawn.times)
    f = path.focal * WIDTH
    rays = np.stack([drawn.places.real / f, drawn.places.imag / f, np.ones((HEIGHT, WIDTH))], axis=-1)
    for t in range(FRAMES):
        seen = (turn[0].inv() * turn[t]).apply(rays.reshape(-1, 3))
        start = turn[0].inv().apply(position[t] - position[0])
        met = start + ((distance - start[2]) / seen[:, 2])[:, None] * seen
        image = look(drawn.background, (met[:, 0] + 1j * met[:, 1]).reshape(HEIGHT, WIDTH) * f / distance)
        drawn.frames[t] = np.clip(np.rint(image * 255), 0, 255)


def test_a_given_camera_is_used_and_the_background_put_where_frames_agree() -> None:
    drawn = Drawn(still)
    turned = Rotation.from_euler("y", np.linspace(0.3, 0.34, 5)[:, None])
    path = CameraPath(
        focal=1.0,
        times=np.linspace(0, 1, 5),
        position=np.array([5.0, -2.0, 1.0]) + np.linspace(0, 1, 5)[:, None] * [0.9, 0.1, -0.05],
        rotation=turned.as_quat(scalar_first=True),
    )
    _filmed(path, 6.0, drawn)
    placed = drawn.place(camera=path)
    assert placed.focal == 1.0
    # In the world of the first frame's camera.
    position, turn = pose(placed.camera_position, placed.camera_rotation, 1.0)
    assert position == pytest.approx(turned[0].inv().apply([0.9, 0.1, -0.05]), abs=1e-3)
    assert turn.as_euler("xyz") == pytest.approx([0, 0.04, 0], abs=1e-3)
    middle = on_background(placed, np.zeros(1, complex), 0.0)[0]
    assert middle[2] == pytest.approx(6.0, rel=0.1)


def test_a_camera_that_only_turns_leaves_the_background_at_its_least_distance() -> None:
    drawn = Drawn(still, (moving(10, 0, at=-5),))
    turned = Rotation.from_euler("y", np.linspace(0, 0.1, FRAMES)[:, None]).as_quat(scalar_first=True)
    path = CameraPath(1.2, drawn.times, np.zeros((FRAMES, 3)), turned)
    placed = drawn.place(camera=path)
    normal = Rotation.from_quat(placed.background_rotation, scalar_first=True).apply([0.0, 0.0, 1.0])
    assert placed.background_position @ normal == pytest.approx(1.5, rel=1e-6)
    assert object_errors(placed, drawn, 0).max() < 0.8  # placed through the camera's poses
    assert depths(placed).max() < 0.8 * 1.5


def test_boxes_say_how_far_objects_are() -> None:
    drawn = Drawn(still, (moving(4, 0, at=-20 - 14j), moving(-4, 0, at=20 + 14j)))
    path = CameraPath(1.2, np.array([0.0, 1.0]), np.full((2, 3), 7.0), np.array([[1.0, 0, 0, 0]] * 2))
    boxes = np.full((FRAMES, 2, 3), np.nan)
    boxes[:, 0] = [7.0, 7.0, 7.0 + 2.0]
    boxes[2:6, 1] = [7.0, 7.0, 7.0 + 5.0]
    placed = drawn.place(camera=path, boxes=boxes)
    assert depths(placed).mean(axis=1) == pytest.approx([2.0, 5.0], rel=0.03)
    assert placed.background_position[2] == pytest.approx(10.0)


@pytest.mark.parametrize("field", ["focal", "background_distance", "object_margin", "background_margin", "initial_px"])
def test_every_setting_is_honoured(field: str) -> None:
    drawn = Drawn(moving(6, 0), (moving(20, 0, at=-10),))
    other = {"focal": 0.8, "background_distance": 4.0, "object_margin": 1.0, "background_margin": 0.5, "initial_px": 24}
    usual, changed = drawn.place(), drawn.place(settings=PlacementSettings(**{field: other[field]}))
    if field == "focal":
        assert changed.focal == 0.8
    elif field == "background_distance":
        assert changed.background_position[2] == pytest.approx(4.0)
    elif field == "object_margin":
        assert changed.object_pictures[0].shape[1] / usual.object_pictures[0].shape[1] == pytest.approx(
            2 / 1.4, rel=0.07
        )
    elif field == "background_margin":
        assert changed.background_size / usual.background_size == pytest.approx(np.full(2, 1.5 / 1.1), rel=0.02)
    else:
        assert max(changed.background_picture.shape[:2]) <= 25
        assert max(changed.object_pictures[0].shape[:2]) == 24
    if field != "initial_px":
        assert object_errors(changed, drawn, 0).max() < 0.8


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 12))
def test_depths_keep_the_order_and_stay_before_the_background(data: st.DataObject, count: int) -> None:
    sizes = st.lists(st.floats(0.2, 5.0), min_size=4, max_size=4)
    scales = [np.array(data.draw(sizes)) for _ in range(count)]
    far = np.array(data.draw(st.lists(st.floats(0.5, 20), min_size=4, max_size=4)))
    order = data.draw(st.permutations(range(count)))
    wanted = np.array(
        data.draw(st.lists(st.one_of(st.floats(0.1, 10), st.just(np.inf)), min_size=count, max_size=count))
    )
    found = reference_depths(order, scales, wanted, far)
    by_frame = np.array([found[number] / scales[number] for number in order])
    assert (found > 0).all()
    assert (found <= wanted).all()
    assert (by_frame <= 0.8 * far * (1 + 1e-9)).all()
    assert (by_frame[:-1] <= 0.9 * by_frame[1:] * (1 + 1e-9)).all()
