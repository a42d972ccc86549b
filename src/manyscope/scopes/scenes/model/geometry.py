"""Poses, rays and where rays meet planes, in the coordinates of `manyscope.scopes.scenes.placement`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyscope.scopes.scenes.splines import basis

_NEARLY_PARALLEL = 1e-6
_SMALL_ANGLE = 1e-6


@dataclass(frozen=True)
class Poses:
    """Where something is at n times.

    Attributes:
        position: (n, 3).
        rotation: (n, 3, 3), to the world.
    """

    position: Tensor
    rotation: Tensor


class Path(nn.Module):
    """A path given by control points, with learned offsets that start at zero.

    Position: p(t) = p0(t) + weight * reach * a(t); rotation: q(t) = q0(t) o quaternion(weight * b(t)), where a and b
    are Catmull-Rom splines with two more control points than the path, one beyond each end.

    Args:
        position: (K, 3) control points of p0.
        rotation: (K, 4) control points of q0, interpolated each for itself and brought back to unit length.
        weight: of the offsets.
        reach: a length, such as the depth at which the path is seen: a step of the offsets then moves what is seen by
            as many pixels, whatever the depth and the unit of length.
        translation, turning: whether each of them is learned.
    """

    position: Tensor
    rotation: Tensor
    reach: Tensor

    def __init__(
        self,
        position: Tensor,
        rotation: Tensor,
        weight: float,
        reach: float = 1.0,
        translation: bool = True,
        turning: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("reach", torch.tensor(float(reach)))
        self.register_buffer("position", position.float())
        self.register_buffer("rotation", rotation.float())
        self.weight, points = weight, max(len(position), 2) + 2
        self.translation = nn.Parameter(torch.zeros(points, 3), requires_grad=translation)
        self.turning = nn.Parameter(torch.zeros(points, 3), requires_grad=turning)

    def forward(self, times: Tensor) -> Poses:
        """The poses at (n,) times in [0, 1]."""
        where = times.double().cpu().numpy()
        own, beyond = (
            torch.as_tensor(basis(where, points, end)).to(self.position)
            for points, end in ((len(self.position), False), (len(self.translation), True))
        )
        position = own @ self.position + self.weight * self.reach * (beyond @ self.translation)
        rotation = F.normalize(own @ self.rotation, dim=-1)
        turned = quaternion_product(rotation, rotation_quaternion(self.weight * (beyond @ self.turning)))
        return Poses(position, rotation_matrix(turned))


def rotation_quaternion(vector: Tensor) -> Tensor:
    """The unit quaternion (…, 4), w first, of a rotation vector (…, 3): its direction is the axis, its length the
    angle."""
    half = vector / 2
    angle = half.square().sum(-1, keepdim=True)  # squared: its root has no gradient at zero
    small = angle < _SMALL_ANGLE
    safe = torch.where(small, torch.ones_like(angle), angle).sqrt()
    ratio = torch.where(small, 1 - angle / 6, safe.sin() / safe)
    cosine = torch.where(small, 1 - angle / 2, safe.cos())
    return torch.cat([cosine, ratio * half], -1)


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """The rotation b, then a; (…, 4), w first."""
    w1, x1, y1, z1 = a.unbind(-1)
    w2, x2, y2, z2 = b.unbind(-1)
    return torch.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        -1,
    )


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """(…, 3, 3) of unit quaternions (…, 4)."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def directions(places: Tensor, height: int, width: int, focal: float) -> Tensor:
    """Directions of rays in the camera's own axes, (n, 3) with z = 1, through places (n, 2), x and y in pixels."""
    middle = places.new_tensor([width / 2, height / 2])
    return F.pad((places - middle) / (focal * width), (0, 1), value=1.0)


def meet(camera: Poses, plane: Poses, size: Tensor, which: Tensor, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays meet a plane.

    Args:
        camera, plane: at the same n times.
        size: (2,), width and height of the plane.
        which: (m,) int, the time of each ray.
        rays: (m, 3), from `directions`.

    Returns:
        depth: (m,), in lengths of the rays as given, so that depths of one ray can be compared; infinite where the ray
            does not meet the plane.
        uv: (m, 2), on the plane; [0, 1] is inside.
        local: (m, 3), the directions of the rays in the plane's axes.
    """
    back = plane.rotation.transpose(-1, -2)
    turn = back @ camera.rotation
    start = (back @ (camera.position - plane.position).unsqueeze(-1)).squeeze(-1)
    local = (turn[which] * rays.unsqueeze(-2)).sum(-1)
    begin = start[which]
    slope = local[:, 2]
    steep = slope.abs() > _NEARLY_PARALLEL
    depth = -begin[:, 2] / torch.where(steep, slope, torch.ones_like(slope))
    uv = (begin[:, :2] + depth.unsqueeze(-1) * local[:, :2]) / size + 0.5
    return torch.where(steep & (depth > 0), depth, torch.full_like(depth, math.inf)), uv, local


def inclination(local: Tensor) -> Tensor:
    """The two angles between a plane's normal and directions (n, 3) in the plane's axes, from [-π, π] to [0, 1]: the
    rotation vector that takes the one to the other, which has no third component."""
    across = local[:, :2].norm(dim=-1, keepdim=True)
    angle = torch.atan2(across, local[:, 2:])
    vector = torch.stack([-local[:, 1], local[:, 0]], -1) * (angle / across.clamp_min(1e-12))
    return vector / (2 * math.pi) + 0.5
