"""Edits of a scene: what they ask for, and what is seen then."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from manyscope.errors import DataError, ManyscopeError
from manyscope.scopes.scenes.edits import ScenesEdits, checker
from manyscope.scopes.scenes.model.editing import edited, paint_frame
from manyscope.scopes.scenes.model.render import Actor, cast, places_on, render
from small_scene import FRAMES, HEIGHT, WIDTH, shake, small_graph

INDICES = list(range(100, 100 + FRAMES))
MIDDLE = HEIGHT // 2, WIDTH // 2


def after(graph, *edits):
    return edited(graph, cast(graph), ScenesEdits.model_validate({"edits": edits}).edits, INDICES)


def centre(rendering, name):
    """Middle of what is seen of an appearance, x and y in pixels."""
    y, x = np.nonzero(rendering.layers[name][..., 3] > 0.5)
    return x.mean() + 0.5, y.mean() + 0.5


def test_a_removed_object_leaves_what_is_behind_it():
    graph = shake(small_graph(), 0.1)
    before, changed = render(graph, 0.5), render(graph, 0.5, after(graph, {"do": "remove", "object": "object-1"}))
    far, back = before.layers["object-2"], before.layers["background"]
    alpha = far[..., 3:]
    np.testing.assert_allclose(changed.frame, far[..., :3] * alpha + back[..., :3] * (1 - alpha), atol=1e-5)
    assert "object-1" not in changed.layers


def test_a_shift_is_in_pixels_of_the_frame_at_the_objects_distance(graph):
    for name in ("object-1", "object-2"):
        shift = {"do": "shift", "object": name, "right_px": 5, "down_px": -3}
        x, y = centre(render(graph, 0.5), name)
        moved_x, moved_y = centre(render(graph, 0.5, after(graph, shift)), name)
        assert (moved_x - x, moved_y - y) == pytest.approx((5, -3), abs=0.51)


def test_nearer_is_larger_in_place_and_turns_stay_in_the_plane(graph):
    edit = {"do": "shift", "object": "object-1", "nearer": 2.0, "turn_degrees": 90}
    before, changed = render(graph, 0.5), render(graph, 0.5, after(graph, edit))
    area = before.layers["object-1"][..., 3].sum()
    assert changed.layers["object-1"][..., 3].sum() == pytest.approx(4 * area, rel=0.15)
    assert centre(changed, "object-1") == pytest.approx(centre(before, "object-1"), abs=0.51)
    assert changed.depth["object-1"][MIDDLE] == pytest.approx(before.depth["object-1"][MIDDLE] / 2, rel=1e-3)
    start, turned = before.corners["object-1"], changed.corners["object-1"]
    np.testing.assert_allclose(turned[0] - turned.mean(0), 2 * (start[1] - start.mean(0)), atol=1e-3)


def test_edits_are_done_one_after_the_other(graph):
    twice = {"do": "shift", "object": "object-1", "right_px": 3}
    x, _ = centre(render(graph, 0.5), "object-1")
    moved, _ = centre(render(graph, 0.5, after(graph, twice, twice)), "object-1")
    assert moved - x == pytest.approx(6, abs=0.51)


def test_a_copy_has_a_name_and_can_be_edited_itself(graph):
    copy = {"do": "duplicate", "object": "object-1", "right_px": -8, "name": "twin"}
    actors = after(graph, copy, {"do": "shift", "object": "twin", "down_px": 4})
    rendering = render(graph, 0.5, actors)
    (x, y), (twin_x, twin_y) = centre(rendering, "object-1"), centre(rendering, "twin")
    assert (twin_x - x, twin_y - y) == pytest.approx((-8, 4), abs=0.51)
    assert [actor.name for actor in after(graph, {"do": "duplicate", "object": "object-2"})][-1] == "object-2-copy"


def test_backwards_is_exactly_the_clip_from_its_end():
    graph = shake(small_graph(), 0.1)
    for offset in graph.camera.parameters():
        offset.data.zero_()  # seen by a camera that stands still
    actors = after(graph, {"do": "retime", "object": "object-1", "reverse": True})
    for number in range(FRAMES):
        forward, back = graph.times[number].item(), graph.times[FRAMES - 1 - number].item()
        changed, original = render(graph, forward, actors), render(graph, back)
        np.testing.assert_allclose(changed.layers["object-1"], original.layers["object-1"], atol=1e-6)
        np.testing.assert_array_equal(changed.layers["object-2"], render(graph, forward).layers["object-2"])
    again = after(graph, *[{"do": "retime", "object": "object-1", "reverse": True}] * 2)
    np.testing.assert_allclose(render(graph, 0.3, again).frame, render(graph, 0.3).frame, atol=1e-6)


def test_later_is_so_many_frames_later_and_stands_still_before(graph):
    actors = after(graph, {"do": "retime", "object": "object-1", "later_frames": 2})
    times = graph.times.tolist()
    np.testing.assert_allclose(
        render(graph, times[5], actors).layers["object-1"], render(graph, times[3]).layers["object-1"], atol=1e-5
    )
    for number in (0, 1, 2):
        np.testing.assert_allclose(
            render(graph, times[number], actors).layers["object-1"], render(graph, 0.0).layers["object-1"], atol=1e-5
        )


def test_a_painted_picture_is_seen_in_its_frame_and_moves_with_the_object():
    graph = small_graph()
    picture = np.kron(checker(6, 8)[::2, ::2], np.ones((8, 8, 1))).astype(np.float32) / 255  # cells of 8 pixels
    texture = paint_frame(graph, cast(graph)[0], picture, 0.5)
    actors = [Actor("object-1", "object-1", textures=(texture,)), *cast(graph)[1:]]
    layer = render(graph, 0.5, actors).layers["object-1"]
    solid = layer[..., 3] > 0.9
    assert np.abs(layer[solid][:, :3] - picture[solid][:, :3]).mean() < 0.06
    # The object moves by 0.4 widths in the clip: by 4 pixels in 0.3125 of it.
    later = render(graph, 0.5 + 4 / (0.4 * WIDTH), actors).layers["object-1"]
    there = np.roll(solid, 4, axis=1)
    np.testing.assert_allclose(later[there][:, :3], layer[solid][:, :3], atol=0.02)


def test_a_transparent_picture_paints_nothing_and_opacity_stays(graph, tmp_path):
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[:, : WIDTH // 2] = 255, 255, 0, 255
    Image.fromarray(picture).save(tmp_path / "half.png")
    edit = {"do": "paint", "object": "object-1", "image": str(tmp_path / "half.png"), "frame": 103}
    # Frame 103 is at 3/7 of the clip.
    time = 3 / 7
    before, changed = render(graph, time), render(graph, time, after(graph, edit))
    np.testing.assert_array_equal(changed.layers["object-1"][..., 3], before.layers["object-1"][..., 3])
    solid = before.layers["object-1"][..., 3] > 0.9
    left, right = solid.copy(), solid.copy()
    left[:, WIDTH // 2 - 1 :], right[:, : WIDTH // 2 + 1] = False, False
    assert left.any()
    assert right.any()
    np.testing.assert_allclose(
        changed.layers["object-1"][left][:, :3], np.tile([1.0, 1, 0], (left.sum(), 1)), atol=0.02
    )
    np.testing.assert_allclose(changed.layers["object-1"][right], before.layers["object-1"][right], atol=1e-6)


def test_a_picture_may_cover_the_atlas_and_the_background_can_be_painted(graph, tmp_path):
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / "green.png")
    edit = {"do": "paint", "object": "background", "image": str(tmp_path / "green.png"), "on": "atlas"}
    changed = render(graph, 0.2, after(graph, edit))
    np.testing.assert_allclose(
        changed.layers["background"][..., :3], np.broadcast_to([0.0, 1, 0], (HEIGHT, WIDTH, 3)), atol=1e-6
    )
    np.testing.assert_array_equal(changed.layers["object-1"], render(graph, 0.2).layers["object-1"])


def test_an_object_outside_of_the_frame_takes_no_paint(graph):
    shifted = after(graph, {"do": "shift", "object": "object-1", "right_px": 500})
    assert np.isinf(render(graph, 0.5, shifted).depth["object-1"]).all()
    graph.paths[0].position += 100
    assert paint_frame(graph, cast(graph)[0], np.ones((HEIGHT, WIDTH, 4), np.float32), 0.5).sum() == 0


def half(folder, name, colour, left=True):
    """A picture over the frame, one half of it painted."""
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[:, slice(0, WIDTH // 2) if left else slice(WIDTH // 2, WIDTH)] = *colour, 255
    Image.fromarray(picture).save(folder / name)
    return {"do": "paint", "object": "object-1", "image": str(folder / name), "frame": 103}


def test_a_second_picture_lies_over_the_first(graph, tmp_path):
    red = half(tmp_path, "red.png", (255, 0, 0), left=True)
    green = half(tmp_path, "green.png", (0, 255, 0), left=False)
    layer = render(graph, 3 / 7, after(graph, red, green)).layers["object-1"]
    solid = layer[..., 3] > 0.9
    left, right = solid.copy(), solid.copy()
    left[:, WIDTH // 2 - 1 :], right[:, : WIDTH // 2 + 1] = False, False
    np.testing.assert_allclose(layer[left][:, :3], np.tile([1.0, 0, 0], (left.sum(), 1)), atol=0.02)
    np.testing.assert_allclose(layer[right][:, :3], np.tile([0.0, 1, 0], (right.sum(), 1)), atol=0.02)


def test_paint_lands_where_the_object_was_moved_to(graph, tmp_path):
    shift = {"do": "shift", "object": "object-1", "right_px": 5}
    red = half(tmp_path, "red.png", (255, 0, 0), left=True)
    layer = render(graph, 3 / 7, after(graph, shift, red)).layers["object-1"]
    y, x = np.nonzero(layer[..., 3] > 0.9)
    painted = layer[y, x, 1] < 0.02  # the object's own green is 0.1
    assert set(x[painted]) <= set(range(WIDTH // 2 + 1))
    assert set(x[~painted]) <= set(range(WIDTH // 2 - 1, WIDTH))


def test_large_frames_are_painted_to_their_last_column(monkeypatch):
    monkeypatch.setattr("manyscope.scopes.scenes.model.editing._MOST_POINTS", 100)
    graph = small_graph(0)
    texture = paint_frame(graph, cast(graph)[0], np.ones((HEIGHT, WIDTH, 4), np.float32), 0.0)
    painted = render(graph, 0.0, [Actor("background", "background", textures=(texture,))]).layers["background"]
    assert (painted[1:-1, 1:-1, :3] > 0.99).all()


def test_a_plane_of_which_one_column_is_seen_takes_no_paint_and_no_error(graph):
    edge = {"do": "shift", "object": "object-1", "right_px": WIDTH / 2 + 0.2 * WIDTH - 0.9}
    actor = after(graph, edge)[0]
    columns = np.isfinite(places_on(graph, actor, 0.5)[..., 0]).any(0).sum()
    assert columns == 1
    assert paint_frame(graph, actor, np.ones((HEIGHT, WIDTH, 4), np.float32), 0.5).sum() == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"do": "remove", "object": "object-3"}, r"there is no 'object-3'; allowed: object-1, object-2, background"),
        ({"do": "remove", "object": "background"}, "the background cannot be edited by 'remove'; allowed: paint"),
        ({"do": "duplicate", "object": "object-1", "name": "object-2"}, "the name 'object-2' is taken"),
        ({"do": "paint", "object": "object-1", "image": "nowhere.png"}, "nowhere.png: the picture is missing"),
        ({"do": "paint", "object": "object-1", "image": __file__}, "not a readable picture"),
    ],
)
def test_what_cannot_be_done_is_said(graph, edit, message):
    with pytest.raises(ManyscopeError, match=message):
        after(graph, edit)


def test_a_frame_that_is_not_there_cannot_be_painted_on(graph, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ManyscopeError, match="there is no frame 3; allowed: 100 to 107"):
        after(graph, {"do": "paint", "object": "object-1", "image": str(tmp_path / "a.png"), "frame": 3})


@pytest.mark.parametrize(
    "edit",
    [
        {"do": "erase", "object": "object-1"},
        {"do": "remove"},
        {"do": "shift", "object": "object-1", "nearer": 0},
        {"do": "paint", "object": "object-1", "image": "a.png", "on": "atlas", "frame": 1},
        {"do": "remove", "object": "object-1", "right_px": 3},
    ],
)
def test_edits_are_strict(edit):
    with pytest.raises(ValidationError):
        ScenesEdits.model_validate({"edits": [edit]})
    with pytest.raises(ValidationError):
        ScenesEdits.model_validate({"edits": []})


def test_errors_of_pictures_are_errors_of_data(graph):
    with pytest.raises(DataError):
        after(graph, {"do": "paint", "object": "object-1", "image": "nowhere.png"})
