"""Rendering of frames: what is written, by whom, and what is said of each layer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from manyscope.scopes.scenes.files import atlas_file, edit_file, frame_file, layer_file
from manyscope.scopes.scenes.model.infer import atlas, predict, untrained
from manyscope.scopes.scenes.model.render import cast, render, render_frame
from small_scene import FRAMES, HEIGHT, WIDTH, shake, small_graph

IDS = [f"frame-{number:05d}" for number in range(FRAMES)]


def clip(truth: object = None) -> SimpleNamespace:
    return SimpleNamespace(
        truth=truth, times=np.linspace(0, 1, FRAMES), rows_of=lambda ids: np.array([IDS.index(i) for i in ids])
    )


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_frames_layers_and_edits_are_those_that_are_rendered(tmp_path: Path) -> None:
    graph = shake(small_graph(), 0.1)
    list(predict(graph, clip(truth=object()), IDS[2:4], tmp_path, rays=500))
    rendering = render(graph, clip().times[3])
    assert np.abs(pixels(frame_file(tmp_path, IDS[3])) / 255 - rendering.frame).max() <= 0.502 / 255
    layer = pixels(layer_file(tmp_path, "object-2", IDS[3])) / 255
    assert np.abs(layer - rendering.layers["object-2"]).max() <= 0.502 / 255
    removed = render_frame(graph, clip().times[3], cast(graph)[1:])
    assert np.abs(pixels(edit_file(tmp_path, "remove", "object-1", IDS[3])) / 255 - removed).max() <= 0.502 / 255
    painted = pixels(edit_file(tmp_path, "paint", "object-1", IDS[3]))
    assert (painted != pixels(frame_file(tmp_path, IDS[3]))).any(-1).sum() > 20


def test_a_filmed_clip_has_no_edits_to_be_judged(tmp_path: Path) -> None:
    list(predict(small_graph(), clip(), IDS[:1], tmp_path, rays=5000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlases", "frames", "layers"]


def test_atlases_are_written_with_the_first_frame_alone_so_that_no_two_shards_write_one_file(tmp_path: Path) -> None:
    graph = shake(small_graph(), 0.1)
    list(predict(graph, clip(), IDS[1:], tmp_path / "others", rays=5000))
    assert not (tmp_path / "others/atlases").exists()
    list(predict(graph, clip(), IDS[:1], tmp_path / "first", rays=5000))
    for layer in graph.layers:
        written = pixels(atlas_file(tmp_path / "first", layer)) / 255
        assert np.abs(written - atlas(graph, layer)).max() <= 0.502 / 255


def test_every_layer_that_can_be_seen_is_an_object_with_its_place_and_depth(tmp_path: Path) -> None:
    graph = small_graph()
    (found,) = predict(graph, clip(), [IDS[0]], tmp_path, rays=5000)
    assert found.object_id == [f"{IDS[0]}/{layer}" for layer in graph.layers]
    assert found.columns["layer"] == graph.layers
    assert found.columns["depth"] == pytest.approx([1.0, 1.4, 2.0])
    assert found.columns["x_px"][:2] == pytest.approx([WIDTH / 2 - 0.2 * WIDTH, WIDTH / 2 + 0.2 * WIDTH], abs=0.6)
    assert found.columns["y_px"][0] == pytest.approx(HEIGHT / 2, abs=0.3)
    assert found.columns["share"][2] == pytest.approx(1.0)
    assert found.embedding.shape[0] == 3


def test_an_object_outside_of_the_frame_has_no_row_but_a_file(tmp_path: Path) -> None:
    graph = small_graph()
    graph.paths[0].position += 100
    (found,) = predict(graph, clip(), [IDS[0]], tmp_path, rays=5000)
    assert found.columns["layer"] == ["object-2", "background"]
    assert found.samples == [IDS[0]]
    assert pixels(layer_file(tmp_path, "object-1", IDS[0]))[..., 3].max() == 0


def test_the_scene_as_placed_is_the_one_without_fields() -> None:
    plain, shaken = small_graph(), small_graph()
    for plane in (*shaken.planes, shaken.background):
        for field in (plane.colour, plane.alpha, plane.flow, plane.view):
            if field is not None:
                for parameter in field.parameters():
                    parameter.data.add_(0.3)
    frame, background = untrained(shaken, clip())(3)
    rendering = render(plain, clip().times[3])
    assert np.abs(frame / 255 - rendering.frame).max() <= 0.502 / 255
    assert np.abs(background / 255 - rendering.layers["background"][..., :3]).max() <= 0.502 / 255
    without, _ = untrained(shaken, clip())(3, without="object-1")
    assert np.abs(without / 255 - render_frame(plain, clip().times[3], cast(plain)[1:])).max() <= 0.502 / 255
