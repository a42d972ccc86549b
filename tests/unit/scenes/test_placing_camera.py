from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from manyscope.errors import DataError
from manyscope.scopes.scenes.data.placing.align import Similarity
from manyscope.scopes.scenes.data.placing.camera import CameraPath, covered, fit_path, lifted, read_camera

TURNS = Rotation.from_euler("y", np.array([[0.0], [0.1], [0.3]]))
POSITIONS = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0.5, 0]])


def content() -> dict[str, object]:
    return {
        "focal": 0.9,
        "times": [0, 0.5, 1],
        "position": POSITIONS.tolist(),
        "rotation": TURNS.as_quat(scalar_first=True).tolist(),
    }


def written(folder: Path, what: object) -> Path:
    path = folder / "camera.json"
    path.write_text(json.dumps(what))
    return path


def poses(rows: int) -> list[list[list[float]]]:
    matrices = np.tile(np.eye(4), (3, 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = TURNS.as_matrix(), POSITIONS
    return matrices[:, :rows].tolist()


def the_same(path: CameraPath) -> bool:
    turns = Rotation.from_quat(path.rotation, scalar_first=True)
    return bool(np.allclose(path.position, POSITIONS) and (turns.inv() * TURNS).magnitude().max() < 1e-9)


def test_a_camera_file_is_read(tmp_path: Path) -> None:
    path = read_camera(written(tmp_path, content()))
    assert path.focal == 0.9
    assert path.times.tolist() == [0, 0.5, 1]
    assert the_same(path)


@pytest.mark.parametrize("rows", [3, 4])
def test_poses_may_be_matrices(tmp_path: Path, rows: int) -> None:
    what = {"focal": 0.9, "times": [0, 0.5, 1], "pose": poses(rows)}
    assert the_same(read_camera(written(tmp_path, what)))


@pytest.mark.parametrize("point", [None, [0.5, 0.5], [427.0, 240.0]])
def test_camera_files_of_neural_atlas_graphs_are_read(tmp_path: Path, point: list[float] | None) -> None:
    what = {
        "resolution": [854, 480],
        "focal_length": 1.1,
        "principal_point": point,
        "skew": 0,
        "times": [0, 0.5, 1],
        "position": poses(4),
        "distance_quantiles": [1, 2],
    }
    path = read_camera(written(tmp_path, what))
    assert path.focal == 1.1
    assert the_same(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"focal": -1}, "focal length -1"),
        ({"focal": "wide"}, "'focal' is no array of numbers"),
        ({"times": [0, 1, 0.5]}, "times are not rising"),
        ({"times": [0, 0.5, 2]}, "times are not rising"),
        ({"times": [0, 1]}, "'position' has shape (3, 3); allowed: 2 x 3"),
        ({"position": [[0, 0], [1, 1], [2, 2]]}, "'position' has shape (3, 2); allowed: 3 x 3"),
        ({"position": [[0, 0, 0], [1, 1], [2, 2, 2]]}, "'position' is no array of numbers"),
        ({"rotation": [[2, 0, 0, 0]] * 3}, "no unit quaternions"),
        ({"rotation": [[float("nan"), 0, 0, 0]] * 3}, "not finite"),
        ({"pose": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]]] * 3}, "pose 0 has no rotation"),
        ({"pose": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]] * 3}, "pose 0 has no rotation"),
        ({"principal_point": [0.4, 0.5]}, "allowed: the middle of the frame"),
        ({"skew": 0.1}, "skew is 0.1"),
        ({"times": None}, "'times' has shape ()"),
        ({"focal": 10**400}, "'focal' is no array of numbers"),
        ({"focal": 1200}, "focal length 1200.0; allowed: 0.01 to 100.0, in widths of a frame"),
        ({"position": [[0, 0, 0], [10**400, 1, 1], [2, 2, 2]]}, "'position' is no array of numbers"),
        ({"position": [[0, 0, 0], [1e300, 1, 1], [2, 2, 2]]}, "not finite or above 1e+12"),
    ],
)
def test_what_is_wrong_in_a_camera_file_is_said(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(DataError) as error:
        read_camera(written(tmp_path, content() | change))
    assert said in str(error.value)
    assert "camera.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["focal", "times", "position"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    what = content()
    del what[name]
    with pytest.raises(DataError, match="has no"):
        read_camera(written(tmp_path, what))


def test_what_is_no_camera_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable camera file"):
        read_camera(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("a camera")
    with pytest.raises(DataError, match="not a readable camera file"):
        read_camera(tmp_path / "text.json")
    with pytest.raises(DataError, match="holds a list"):
        read_camera(written(tmp_path, [1, 2]))


@pytest.mark.parametrize("place", ["", '"focal": ', '"focal": 1, "skew": '], ids=["alone", "focal", "skew"])
@pytest.mark.parametrize("depth", [50, 500, 900, 5000, 100_000])
def test_a_camera_file_that_is_nested_deeply_is_refused_in_a_line(tmp_path: Path, place: str, depth: int) -> None:
    nested = "[" * depth + "1" + "]" * depth
    (tmp_path / "camera.json").write_text(f"{{{place}{nested}}}" if place else nested)
    with pytest.raises(DataError, match=r"camera\.json: ") as error:
        read_camera(tmp_path / "camera.json")
    assert len(str(error.value)) < 500


def test_a_number_of_more_digits_than_python_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_text('{"focal": 1' + "0" * 5000 + "}")
    with pytest.raises(DataError, match="not a readable camera file"):
        read_camera(tmp_path / "camera.json")


def test_between_given_times_the_camera_moves_evenly() -> None:
    path = CameraPath(1.0, np.array([0.0, 0.5, 1.0]), POSITIONS, TURNS.as_quat(scalar_first=True))
    position, turn = path.at(np.array([0.25, 0.75]))
    assert position == pytest.approx(np.array([[0.5, 0, 0], [1.5, 0.25, 0]]))
    assert turn.magnitude() == pytest.approx([0.05, 0.2])


def test_the_lift_of_a_similarity_is_exact() -> None:
    distance, focal_px = 2.5, 100.0
    motion = Similarity(0.9 * np.exp(0.2j), 7 - 4j)
    position, turn = lifted([motion], distance, focal_px)
    place = np.array([12 - 5j])
    ray = turn[0].apply([place[0].real / focal_px, place[0].imag / focal_px, 1.0])
    met = position[0] + (distance - position[0, 2]) / ray[2] * ray
    assert complex(met[0], met[1]) * focal_px / distance == pytest.approx(motion(place)[0])


def test_the_signs_of_quaternions_do_not_matter() -> None:
    times = np.linspace(0, 1, 8)
    turns = Rotation.from_euler("z", np.linspace(2.8, 3.6, 8)[:, None])  # past π, where scipy's signs jump
    flipped = turns.as_quat(scalar_first=True) * np.array([1, -1] * 4)[:, None]
    fitted = fit_path(times, np.zeros((8, 3)), Rotation.from_quat(flipped, scalar_first=True), 4)
    assert (fitted.rotation[1:] * fitted.rotation[:-1]).sum(axis=1).min() > 0.9
    between = fitted.at(np.array([0.5]))[1]
    assert (between.inv() * Rotation.from_euler("z", [3.2])).magnitude() == pytest.approx(0, abs=1e-3)


def test_where_a_mask_is_not_known_those_of_the_neighbours_cover() -> None:
    masks = np.zeros((3, 1, 40, 40), np.uint8)
    masks[0, 0, 5, 5], masks[2, 0, 30, 30] = 255, 255
    hidden = covered(masks, np.array([[True], [False], [True]]), 2)
    assert hidden[0].sum() == 25
    assert hidden[1, 5, 5]
    assert hidden[1, 30, 30]
    assert not hidden[2, 5, 5]
    assert not covered(masks, np.zeros((3, 1), bool), 2).any()
