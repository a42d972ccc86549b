"""Splines, poses, rays and planes against what can be worked out by hand or by another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation

from manyscope.scopes.scenes.model.geometry import (
    Path,
    Poses,
    directions,
    inclination,
    meet,
    quaternion_product,
    rotation_matrix,
    rotation_quaternion,
)
from manyscope.scopes.scenes.splines import basis, fit

vectors = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


@given(st.integers(2, 12), st.booleans())
def test_a_spline_goes_through_its_points_and_keeps_straight_lines(points, beyond):
    if beyond:
        points = max(points, 4)
    inner = points - 2 if beyond else points
    knots = np.linspace(0, 1, inner)
    matrix = basis(knots, points, beyond)
    values = np.random.default_rng(points).normal(size=points)
    np.testing.assert_allclose(matrix @ values, values[1:-1] if beyond else values, atol=1e-12)
    times = np.linspace(0, 1, 31)
    step = 1 / (inner - 1)
    line = np.linspace(-step, 1 + step, points) if beyond else np.linspace(0, 1, points)
    np.testing.assert_allclose(basis(times, points, beyond) @ line, times, atol=1e-12)


def test_a_spline_is_the_cubic_with_central_differences_as_slopes():
    values = np.array([0.3, -1.0, 2.0, 0.5, 1.5, -0.7])
    knots = np.arange(-1, 5) / 3
    slopes = (values[2:] - values[:-2]) / (knots[2:] - knots[:-2])
    other = CubicHermiteSpline(knots[1:-1], values[1:-1], slopes)
    times = np.linspace(0, 1, 50)
    np.testing.assert_allclose(basis(times, 6, beyond=True) @ values, other(times), atol=1e-12)


def test_times_outside_of_the_clip_are_its_ends():
    np.testing.assert_array_equal(basis(np.array([-1.0, 2.0]), 5), basis(np.array([0.0, 1.0]), 5))


@pytest.mark.parametrize(("points", "beyond"), [(0, False), (3, True)])
def test_too_few_control_points_are_refused(points, beyond):
    with pytest.raises(ValueError):
        basis(np.array([0.5]), points, beyond)


def test_control_points_are_found_again_from_values():
    points = np.random.default_rng(0).normal(size=(5, 3))
    times = np.linspace(0, 1, 12)
    np.testing.assert_allclose(fit(times, basis(times, 5) @ points, 5), points, atol=1e-4)


def test_too_few_values_give_the_straightest_spline_through_them():
    found = basis(np.linspace(0, 1, 9), 7) @ fit(np.array([0.0, 1.0]), np.array([[1.0], [3.0]]), 7)
    np.testing.assert_allclose(found[:, 0], np.linspace(1, 3, 9), atol=1e-3)


@given(vectors, vectors)
def test_quaternions_turn_as_scipy_turns(a, b):
    first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    product = quaternion_product(rotation_quaternion(first), rotation_quaternion(second))
    wanted = (Rotation.from_rotvec(a) * Rotation.from_rotvec(b)).as_matrix()
    np.testing.assert_allclose(rotation_matrix(product).numpy(), wanted, atol=1e-9)


def test_no_turn_has_a_gradient():
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_quaternion, (vector,))


def test_a_path_starts_as_it_is_given_and_moves_by_its_offsets():
    position = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 1, 0]])
    rotation = torch.tensor(Rotation.from_rotvec([[0, 0, 0.0], [0, 0, 0.1], [0, 0, 0.2]]).as_quat(scalar_first=True))
    path = Path(position, rotation, weight=0.5)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    poses = path(times)
    torch.testing.assert_close(poses.position, position)
    torch.testing.assert_close(poses.rotation[2], torch.tensor(Rotation.from_rotvec([0, 0, 0.2]).as_matrix()).float())
    with torch.no_grad():
        path.translation += torch.tensor([0.0, 0.0, 2.0])
        path.turning += torch.tensor([0.0, 0.0, 0.4])
    moved = path(times)
    torch.testing.assert_close(moved.position, position + torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(moved.rotation[2], torch.tensor(Rotation.from_rotvec([0, 0, 0.4]).as_matrix()).float())


def test_a_frozen_path_does_not_learn():
    path = Path(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0, 0]] * 2), 1.0, translation=False, turning=False)
    assert not any(p.requires_grad for p in path.parameters())


def test_the_middle_of_a_frame_is_straight_ahead():
    rays = directions(torch.tensor([[32.0, 24.0], [64.0, 24.0]]), height=48, width=64, focal=2.0)
    torch.testing.assert_close(rays, torch.tensor([[0.0, 0, 1], [0.25, 0, 1]]))


def _still(position, rotvec=(0, 0, 0)):
    return Poses(torch.tensor([position]).float(), torch.tensor(Rotation.from_rotvec([rotvec]).as_matrix()).float())


def test_rays_meet_a_plane_that_faces_the_camera():
    rays = torch.tensor([[0.0, 0, 1], [0.25, -0.1, 1]])
    depth, uv, local = meet(_still([0, 0, 0]), _still([0, 0, 4]), torch.tensor([2.0, 1.0]), torch.zeros(2).long(), rays)
    torch.testing.assert_close(depth, torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(uv, torch.tensor([[0.5, 0.5], [1.0, 0.1]]))
    torch.testing.assert_close(local, rays)


@given(st.lists(st.floats(-0.6, 0.6), min_size=9, max_size=9))
def test_where_rays_meet_a_plane_lies_on_the_ray_and_on_the_plane(numbers):
    camera = _still([0.1 * numbers[0], numbers[1], numbers[2]], numbers[3:6])
    plane = _still([numbers[0], numbers[1], 3 + numbers[2]], numbers[6:])
    rays = torch.tensor([[0.1, -0.2, 1.0], [0.3, 0.1, 1.0]])
    size = torch.tensor([2.0, 3.0])
    depth, uv, _ = meet(camera, plane, size, torch.zeros(2).long(), rays)
    met = depth.isfinite()
    on_ray = camera.position + depth[:, None] * (rays @ camera.rotation[0].T)
    flat = torch.cat([(uv - 0.5) * size, torch.zeros(2, 1)], 1)
    on_plane = plane.position + flat @ plane.rotation[0].T
    torch.testing.assert_close(on_ray[met], on_plane[met], atol=2e-4, rtol=1e-3)


def test_a_plane_behind_the_camera_or_along_the_ray_is_not_met():
    ray, which, size = torch.tensor([[0.0, 0, 1]]), torch.zeros(1).long(), torch.ones(2)
    assert meet(_still([0, 0, 0]), _still([0, 0, -4]), size, which, ray)[0].isinf().all()
    edge_on = _still([0, 0, 4], (math.pi / 2, 0, 0))
    assert meet(_still([0, 0.5, 0]), edge_on, size, which, ray)[0].isinf().all()


def test_gradients_of_a_pose_reach_the_place():
    position = torch.tensor([[0.0, 0, 4]], requires_grad=True)
    plane = Poses(position, torch.eye(3)[None])
    ahead = torch.tensor([[0, 0, 1.0]])
    _, uv, _ = meet(_still([0, 0, 0]), plane, torch.tensor([2.0, 1.0]), torch.zeros(1).long(), ahead)
    uv[0, 0].backward()
    torch.testing.assert_close(position.grad, torch.tensor([[-0.5, 0.0, 0.0]]))


def test_inclination_is_the_rotation_vector_from_the_normal():
    local = torch.tensor([[0.0, 0, 2], [0.0, 1, 0], [1.0, 0, 1]])
    wanted = torch.tensor([[0.0, 0], [-math.pi / 2, 0], [0, math.pi / 4]]) / (2 * math.pi) + 0.5
    torch.testing.assert_close(inclination(local), wanted)
