"""The graph of a scene: what rays see, what is minimised, and what takes part when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.scopes.scenes.model.bundle import build, load_bundle, save_bundle
from manyscope.scopes.scenes.model.fields import KINDS, PRESETS, field_settings, visible_share
from manyscope.scopes.scenes.model.graph import Hits, composite, hiddenness
from manyscope.scopes.scenes.model.planes import Moment, Planar, Seen, Stage, sample
from manyscope.scopes.scenes.model.render import cast, places_on, render, render_frame
from manyscope.scopes.scenes.settings import ScenesModel
from manyscope.training import checkpoints
from small_scene import FRAMES, HEIGHT, WIDTH, shake, small_graph, small_model, small_placement


def rays_of(graph, count=200, seed=0):
    rng = np.random.default_rng(seed)
    places = torch.as_tensor(rng.uniform(0, [WIDTH, HEIGHT], (count, 2)), dtype=torch.float32)
    frame = torch.as_tensor(rng.integers(0, FRAMES, count))
    masks = torch.as_tensor(rng.integers(0, 2, (count, len(graph.objects))), dtype=torch.float32)
    return {
        "places": places,
        "frame": frame,
        "colour": torch.as_tensor(rng.uniform(size=(count, 3)), dtype=torch.float32),
        "masks": masks,
        "known": torch.ones(count, len(graph.objects), dtype=torch.bool),
    }


def layer(colour, alpha, depth, rays=None, count=1):
    some = torch.arange(count) if rays is None else torch.tensor(rays)
    seen = Seen(torch.tensor([colour] * len(some)), torch.full((len(some),), alpha), torch.zeros(len(some), 2), None)
    return Hits(some, torch.full((len(some),), depth), seen)


def test_the_nearer_layer_covers_the_farther_by_its_opacity():
    red, blue, grey = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)
    hits = [layer(red, 0.25, 3.0), layer(blue, 0.5, 2.0), layer(grey, 1.0, 9.0)]
    wanted = 0.5 * torch.tensor(blue) + 0.5 * 0.25 * torch.tensor(red) + 0.5 * 0.75 * torch.tensor(grey)
    torch.testing.assert_close(composite(hits, 1)[0], wanted)
    torch.testing.assert_close(composite(hits[::-1], 1)[0], wanted)


def test_each_ray_has_its_own_order_and_layers_may_be_missed():
    near = layer((1.0, 0.0, 0.0), 1.0, 1.0, rays=[2], count=1)
    far = layer((0.0, 1.0, 0.0), 1.0, 2.0, count=3)
    found = composite([far, near], 3)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1, 0], [0.0, 1, 0], [1.0, 0, 0]]))


def test_nothing_is_black():
    torch.testing.assert_close(composite([layer((1.0, 1.0, 1.0), 1.0, 1.0, rays=[0])], 2)[1], torch.zeros(3))


def test_an_untrained_graph_shows_what_was_placed(graph):
    rendering = render(graph, 0.5)
    near, far = rendering.layers["object-1"], rendering.layers["object-2"]
    middle = HEIGHT // 2, WIDTH // 2
    np.testing.assert_allclose(near[middle][:3], [0.9, 0.1, 0.1], atol=1e-4)
    assert near[middle][3] == pytest.approx(0.98, abs=1e-3)
    assert rendering.depth["object-1"][middle] == pytest.approx(1.0)
    assert rendering.depth["object-2"][middle] == pytest.approx(1.4)
    behind = far[middle][3] * far[middle][:3] + (1 - far[middle][3]) * rendering.layers["background"][middle][:3]
    np.testing.assert_allclose(rendering.frame[middle], 0.98 * near[middle][:3] + 0.02 * behind, atol=1e-3)


def test_an_object_is_where_its_path_says(graph):
    for time in (0.0, 1 / 3, 1.0):
        alpha = render(graph, time).layers["object-1"][..., 3] > 0.5
        columns = np.flatnonzero(alpha.any(0)) + 0.5
        assert columns.mean() == pytest.approx(WIDTH / 2 + (0.4 * time - 0.2) * WIDTH, abs=0.51)


def test_a_moving_camera_moves_the_background_by_the_parallax_of_its_distance():
    moving, still = small_graph(0, camera_moves=True), small_graph(0)
    at_start, at_end = (places_on(moving, cast(moving)[0], time) for time in (0.0, 1.0))
    np.testing.assert_allclose(at_end - at_start, np.broadcast_to([0.2 / 2.4, 0], at_end.shape), atol=1e-5)
    assert np.allclose(render(still, 0.0).frame, render(still, 1.0).frame)


def test_corners_are_where_the_plane_ends(graph):
    rendering = render(graph, 0.0)
    (left, top), (right, _), (_, bottom), _ = rendering.corners["object-1"]
    assert (right - left, bottom - top) == pytest.approx((0.4 * WIDTH, 0.4 * WIDTH))
    met = np.isfinite(rendering.depth["object-1"])
    columns = np.flatnonzero(met.any(0))
    assert abs(columns[0] - left) <= 0.51
    assert abs(columns[-1] + 1 - right) <= 0.51


def test_rendering_in_pieces_is_the_same():
    graph = shake(small_graph())
    whole, pieces = render(graph, 0.4), render(graph, 0.4, rays=100)
    np.testing.assert_allclose(whole.frame, pieces.frame, atol=1e-5)
    np.testing.assert_allclose(whole.layers["object-2"], pieces.layers["object-2"], atol=1e-5)


@pytest.mark.parametrize("view_by", ["time", "volume", "angle", "none"])
def test_every_parameter_learns_once_everything_takes_part(view_by):
    graph = shake(small_graph(view_by=view_by)).train()
    graph.losses(rays_of(graph, 600))["loss"].backward()
    still = [n for n, p in graph.named_parameters() if p.requires_grad and not p.grad.abs().sum()]
    assert still == []


@pytest.mark.parametrize(
    ("progress", "learning"),
    [
        (0.0, {"translation", "turning"}),
        (0.05, {"translation", "turning", "colour", "alpha"}),
        (0.5, {"translation", "turning", "colour", "alpha", "flow", "view"}),
    ],
)
def test_paths_learn_first_then_colour_then_all(progress, learning):
    graph = shake(small_graph()).train()
    graph.progress = progress
    graph.losses(rays_of(graph, 600))["loss"].backward()
    found = set()
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, "several processes ask that each takes part"
            if parameter.grad.abs().sum():
                found |= {"translation", "turning", "colour", "alpha", "flow", "view"} & set(name.split("."))
    assert found == learning


def test_what_may_not_learn_does_not():
    graph = small_graph(camera_rotation=False, object_translation=False)
    assert not graph.camera.turning.requires_grad
    assert graph.camera.translation.requires_grad
    assert not graph.paths[0].translation.requires_grad
    assert not graph.background_path.translation.requires_grad


def test_the_colour_loss_is_the_mean_difference(graph):
    batch = rays_of(graph)
    losses = graph.losses(batch)
    colour, _ = graph(batch["places"], batch["frame"], graph.times)
    torch.testing.assert_close(losses["colour"], (colour - batch["colour"]).abs().mean())
    torch.testing.assert_close(losses["mse"], (colour - batch["colour"]).square().mean())
    torch.testing.assert_close(losses["loss"], losses["colour"] + graph.settings.mask_weight * losses["mask"])
    assert losses["hidden"] == 0  # nothing changes yet


def middle_ray(graph, masks, known=(True, True)):
    """A ray on which object-1 (opacity .98, nearer) covers object-2 (.98)."""
    return {
        "places": torch.tensor([[WIDTH / 2, HEIGHT / 2]]),
        "frame": torch.tensor([0]),
        "colour": torch.zeros(1, 3),
        "masks": torch.tensor([masks], dtype=torch.float32),
        "known": torch.tensor([known]),
    }


@pytest.mark.parametrize(
    ("masks", "known", "wanted"),
    [
        ((1.0, 0.0), (True, True), (0.02 + 0) / 2),  # hidden by object-1, nothing is known of object-2
        ((0.0, 1.0), (True, True), (0.98 + 0.02) / 2),  # object-1 should be transparent here
        ((0.0, 0.0), (True, True), (0.98 + 0.98) / 2),
        ((1.0, 1.0), (True, True), (0.02 + 0.02) / 2),
        ((0.0, 0.0), (True, False), 0.98 / 2),
    ],
)
def test_masks_count_where_they_are_known_and_no_nearer_object_hides(masks, known, wanted):
    graph = small_graph()
    graph.times[0] = 0.5  # where they meet
    assert graph.losses(middle_ray(graph, masks, known))["mask"].item() == pytest.approx(wanted, abs=2e-3)


def test_an_object_whose_mask_is_not_known_hides_as_far_as_the_graph_knows():
    graph = small_graph()
    graph.times[0] = 0.5
    behind_unknown = middle_ray(graph, (0.0, 0.0), (False, True))
    assert graph.losses(behind_unknown)["mask"].item() == 0
    graph.planes[0].picture[3] = -20.0  # transparent
    assert graph.losses(behind_unknown)["mask"].item() == pytest.approx(0.98 / 2, abs=2e-3)


def test_what_does_not_take_part_yet_is_idle():
    graph = shake(small_graph()).train()
    named = {id(p): name.split(".") for name, p in graph.named_parameters()}
    for progress, kinds in ((0.0, {"colour", "alpha", "flow", "view"}), (0.05, {"flow", "view"}), (0.5, set())):
        graph.progress = progress
        assert {kind for p in graph.idle() for kind in named[id(p)]} & set(KINDS) == kinds


def test_a_step_moves_what_is_seen_by_as_many_pixels_at_every_depth_and_in_every_unit():
    moved = []
    for unit in (1.0, 1000.0):
        placement = small_placement()
        lengths = ("camera_position", "background_position", "background_size", "object_position", "object_size")
        scaled = replace(placement, **{name: unit * getattr(placement, name) for name in lengths})
        torch.manual_seed(0)
        graph = build(small_model(), scaled, (HEIGHT, WIDTH), np.linspace(0, 1, FRAMES), ["object-1", "object-2"])
        before = render(graph, 0.5).corners
        with torch.no_grad():
            for path in graph.paths:
                path.translation += torch.tensor([0.1, 0.0, 0.0])
        after = render(graph, 0.5).corners
        moved += [(after[name] - before[name])[:, 0].mean() for name in graph.objects]
    assert moved == pytest.approx([0.1 * 0.035 * WIDTH] * 4, rel=0.05)


@pytest.mark.parametrize("view_by", ["volume", "time", "angle"])
def test_a_graph_can_be_of_double_precision(view_by):
    graph = shake(small_graph(view_by=view_by)).double().train()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in rays_of(graph).items()}
    loss = graph.losses(batch)["loss"]
    assert loss.dtype == torch.float64
    loss.backward()
    assert render_frame(graph, 0.5).dtype == np.float32


def test_a_look_is_every_so_manieth_pixel_of_the_frame():
    graph = shake(small_graph())
    np.testing.assert_allclose(render_frame(graph, 0.4, every=5), render(graph, 0.4).frame[::5, ::5], atol=1e-6)


def test_penalties_are_added_when_they_are_asked_for():
    graph = shake(small_graph(flow_penalty=0.5, alpha_penalty=0.25, hidden_penalty=0))
    losses = graph.losses(rays_of(graph))
    total = losses["colour"] + graph.settings.mask_weight * losses["mask"]
    assert losses["flow"] > 0
    assert losses["half_opacity"] > 0
    torch.testing.assert_close(losses["loss"], total + 0.5 * losses["flow"] + 0.25 * losses["half_opacity"])


def test_a_layer_is_hidden_as_much_as_nearer_ones_are_opaque():
    hits = [layer((1.0, 0, 0), 0.25, 3.0), layer((0.0, 0, 1), 0.5, 2.0), layer((0.5, 0.5, 0.5), 1.0, 9.0)]
    torch.testing.assert_close(hiddenness(hits, 1)[:, 0], torch.tensor([0.5, 0.0, 1 - 0.5 * 0.75]))


def test_changes_cost_where_they_are_hidden_and_nowhere_else():
    graph = shake(small_graph()).train()
    with torch.no_grad():
        for plane in graph.planes:  # opaque everywhere
            plane.picture[3] = 20.0
    batch = rays_of(graph, 400)
    _, hits = graph(batch["places"], batch["frame"], graph.times)
    hidden = hiddenness(hits, 400)
    assert 0.05 < hidden[2].mean() < 0.9
    wanted = sum((hidden[i][h.rays, None] * h.seen.change.abs()).mean(1).sum() for i, h in enumerate(hits)) / 1200
    losses = graph.losses(batch)
    torch.testing.assert_close(losses["hidden"], wanted)
    losses["hidden"].backward()
    assert graph.background.view.network.params.grad.abs().sum() > 0
    assert graph.background.colour.network.params.grad is None


def test_no_object_needs_no_masks():
    graph = small_graph(0).train()
    losses = graph.losses(rays_of(graph))
    assert "mask" not in losses
    losses["loss"].backward()
    assert graph.camera.translation.grad.abs().sum() > 0


def test_grids_of_two_fields_are_not_alike():
    graph = small_graph()
    tables = [graph.planes[0].colour.grid.params, graph.planes[1].colour.grid.params, graph.background.flow.grid.params]
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def plane_of_a_ramp(**model):
    """Its colour is its u; a graph's planes are built so from a picture."""
    picture = ((torch.arange(10) + 0.5) / 10).view(1, 10, 1).expand(4, 10, 3)
    return Planar(picture, small_model(**model), 4, FRAMES)


def see(plane, u, time=0.5, stage=None):
    moment = Moment(torch.tensor([time]), torch.full((1, 4), 0.25))
    return plane(torch.tensor([[u, 0.5]]), torch.tensor([[0.0, 0, 1]]), moment, stage or Stage())


def constant(field, *values):
    """Let a field say these everywhere."""

    def said(places, share=1.0):
        return torch.tensor(values, dtype=torch.float32).expand(len(places), -1)

    field.forward = said


def test_a_plane_shows_its_picture_where_it_is_displaced_to_with_what_the_fields_add():
    plane = plane_of_a_ramp(flow_weight=0.1, colour_weight=0.5, view_weight=0.2)
    torch.testing.assert_close(see(plane, 0.3).colour, torch.full((1, 3), 0.3))
    constant(plane.flow, *[2.0, 0.0] * 4)  # the same at each of the four control points
    moved = see(plane, 0.3)
    torch.testing.assert_close(moved.place, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(moved.flow, torch.tensor([[0.2, 0.0]]))
    torch.testing.assert_close(moved.colour, torch.full((1, 3), 0.5))
    constant(plane.colour, 0.2, 0.0, -0.4)
    torch.testing.assert_close(see(plane, 0.3).colour, torch.tensor([[0.6, 0.5, 0.3]]))
    constant(plane.view, 0.0, 1.0, 0.0)
    torch.testing.assert_close(see(plane, 0.3).colour, torch.tensor([[0.6, 0.7, 0.3]]))
    assert see(plane, 0.3).alpha == 1
    torch.testing.assert_close(see(plane, 0.3, stage=Stage(False, False)).colour, torch.full((1, 3), 0.3))
    torch.testing.assert_close(see(plane, 0.3, stage=Stage(True, False)).colour, torch.tensor([[0.4, 0.3, 0.1]]))


def test_opacity_is_the_masks_and_the_fields_in_logits():
    picture = torch.cat([torch.zeros(4, 10, 3), torch.full((4, 10, 1), 0.8)], -1)
    plane = Planar(picture, small_model(alpha_weight=0.5, view_weight=0.1), 4, FRAMES)
    assert see(plane, 0.5).alpha.item() == pytest.approx(0.8)
    constant(plane.alpha, -2.0)
    constant(plane.view, 0.0, 0.0, 0.0, 3.0)
    wanted = torch.sigmoid(torch.logit(torch.tensor([0.8])) - 1.0 + 0.3)
    torch.testing.assert_close(see(plane, 0.5).alpha, wanted)


def test_a_volume_has_a_cell_of_its_finest_level_for_each_frame():
    plane = plane_of_a_ramp(view_by="volume")
    asked = []
    plane.view.forward = lambda places, share=1.0: asked.append(places) or torch.zeros(len(places), 3)
    for time in (0.0, 1.0):
        see(plane, 0.5, time)
    finest = 4 * 1.62**2
    assert (asked[1] - asked[0])[0, 2].item() * finest == pytest.approx(FRAMES - 1)


def test_pictures_are_sampled_between_the_centres_of_texels():
    picture = torch.tensor([[[0.0, 1.0, 3.0]]])
    places = torch.tensor([[0.5, 0.5], [1 / 3, 0.2], [-1.0, 0.5], [1.0, 2.0]])
    torch.testing.assert_close(sample(picture, places)[:, 0], torch.tensor([1.0, 0.5, 0.0, 3.0]))


def test_grids_are_seen_bit_by_bit():
    shares = [visible_share(p, 0.5) for p in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.05)
    assert shares[-2:] == [1.0, 1.0]
    assert visible_share(0.0, 0.0) == 1.0


def test_presets_are_those_of_the_paper_and_fields_may_be_given():
    assert PRESETS["large"].levels == 16
    assert PRESETS["large"].log2_table == 17
    assert (PRESETS["tiny"].width, PRESETS["tiny"].layers) == (32, 3)
    given = small_model(preset="large", colour=None)
    assert field_settings(given, "colour") == PRESETS["large"]
    assert field_settings(given, "alpha").levels == 3
    assert all(field_settings(ScenesModel(preset="medium"), kind) == PRESETS["medium"] for kind in KINDS)


def test_a_bundle_is_the_same_scene_without_its_data(tmp_path):
    graph = shake(small_graph(camera_moves=True))
    save_bundle(tmp_path / "scene.ckpt", graph, list(range(10, 18)))
    again, indices = load_bundle(tmp_path / "scene.ckpt", small_model())
    assert indices == list(range(10, 18))
    assert again.objects == graph.objects
    np.testing.assert_array_equal(render(again, 0.3).frame, render(graph, 0.3).frame)
    assert [again.reference(layer) for layer in again.layers] == [2, 2, 0]


def test_a_bundle_without_objects_can_be_loaded(tmp_path):
    graph = shake(small_graph(0))
    save_bundle(tmp_path / "scene.ckpt", graph, list(range(8)))
    np.testing.assert_array_equal(
        render(load_bundle(tmp_path / "scene.ckpt", small_model())[0], 0.3).frame, render(graph, 0.3).frame
    )


def test_broken_bundles_are_refused(tmp_path):
    path = tmp_path / "scene.ckpt"
    with pytest.raises(ManyscopeError, match="missing"):
        load_bundle(path, small_model())
    checkpoints.save(path, {"format": 1, "state_dict": {}})
    with pytest.raises(ManyscopeError, match="not a bundle of a scene"):
        load_bundle(path, small_model())
    save_bundle(path, small_graph(), [0])
    content = checkpoints.load(path)
    del content["state_dict"]["camera.position"]
    checkpoints.save(path, content)
    with pytest.raises(ManyscopeError, match="another form"):
        load_bundle(path, small_model())


def test_models_and_planes_of_ones_own_are_found_by_name(monkeypatch):
    class Darker(Planar):
        def forward(self, *args):
            seen = super().forward(*args)
            return Seen(0.5 * seen.colour, seen.alpha, seen.place, seen.flow)

    monkeypatch.setattr("manyscope.scopes.scenes.model.planes.Darker", Darker, raising=False)
    plain, dark = small_graph(), small_graph(object_plane="manyscope.scopes.scenes.model.planes:Darker")
    ratio = render(dark, 0.5).layers["object-1"][..., :3].max() / render(plain, 0.5).layers["object-1"][..., :3].max()
    assert ratio == pytest.approx(0.5)
    with pytest.raises(ManyscopeError, match=r"plane .planer. is unknown.*did you mean .planar."):
        small_graph(background_plane="planer")
    with pytest.raises(ManyscopeError, match="is no plane"):
        small_graph(background_plane="math:pi")
    with pytest.raises(SettingsError, match=r"model\.args.*atlas_graph"):
        build(small_model(args={"size": 3, "colour": 1}), small_placement(), (4, 4), [0, 1], ["object-1", "object-2"])


def test_every_layer_is_cast_once(graph):
    assert [actor.name for actor in cast(graph)] == ["object-1", "object-2", "background"]
