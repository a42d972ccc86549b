"""Angles, distances and losses on the sphere against scipy, float64 and arithmetic by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import vonmises_fisher
from torch import Tensor

from manyscope.errors import ManyscopeError, SettingsError
from manyscope.nn.directional import (
    LOSSES,
    DirectionalLoss,
    angles,
    angular_distance,
    angular_loss,
    cosine_loss,
    kappa_of_cone,
    unit_vector,
    vmf_cone,
    vmf_log_normaliser,
    vmf_loss,
)

KAPPAS = [0.0, 1e-8, 1e-3, 0.05, 0.19999, 0.2, 0.20001, 0.9999, 1.0, 1.0001, 7.0, 80.0, 1e3, 1e4, 1e6]
AXES = {  # azimuth, zenith -> direction; azimuth runs from +x to +y
    (0.0, 0.0): (0, 0, 1),
    (0.0, math.pi): (0, 0, -1),
    (0.0, math.pi / 2): (1, 0, 0),
    (math.pi / 2, math.pi / 2): (0, 1, 0),
    (math.pi, math.pi / 2): (-1, 0, 0),
    (3 * math.pi / 2, math.pi / 2): (0, -1, 0),
    (math.pi / 2, math.pi / 4): (0, math.sqrt(0.5), math.sqrt(0.5)),
}


def directions(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("angle", "vector"), AXES.items())
def test_axes_by_hand(angle: tuple[float, float], vector: tuple[float, float, float]) -> None:
    azimuth, zenith = torch.tensor(angle, dtype=torch.float64)
    assert unit_vector(azimuth, zenith).tolist() == pytest.approx(vector, abs=1e-15)
    back = angles(3 * torch.tensor(vector, dtype=torch.float64))
    assert [x.item() for x in back] == pytest.approx(angle, abs=1e-15)


def test_angles_and_vectors_are_inverse() -> None:
    generator = torch.Generator().manual_seed(1)
    azimuth = 2 * math.pi * torch.rand(1000, generator=generator, dtype=torch.float64)
    zenith = math.pi * torch.rand(1000, generator=generator, dtype=torch.float64)
    back = angles(unit_vector(azimuth, zenith))
    torch.testing.assert_close(back[0], azimuth, rtol=0, atol=1e-12)
    torch.testing.assert_close(back[1], zenith, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "vector",
    [(1, -1e-9, 0), (1, -1e-30, 0), (1, -0.0, 0), (-1, -0.0, 0), (-1, -1e-30, 0), (1e-20, 0, -1), (-0.0, -0.0, -1)],
)
def test_angles_never_leave_their_ranges(vector: tuple[float, float, float], dtype: torch.dtype) -> None:
    azimuth, zenith = (x.item() for x in angles(torch.tensor(vector, dtype=dtype)))
    assert 0 <= azimuth < 2 * math.pi
    assert 0 <= zenith <= math.pi


@given(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 3))
def test_ranges_hold_for_any_vector(vector: tuple[float, float, float]) -> None:
    azimuth, zenith = (x.item() for x in angles(torch.tensor(vector, dtype=torch.float32)))
    assert 0 <= azimuth < 2 * math.pi
    assert 0 <= zenith <= math.pi


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_vector_has_angles_zero(zero: float) -> None:
    assert [x.item() for x in angles(torch.full((3,), zero))] == [0, 0]


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, math.pi / 2, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi])
def test_distance_is_accurate_at_both_ends(angle: float) -> None:
    u = unit_vector(torch.tensor(0.3), torch.tensor(0.0))
    v = unit_vector(torch.tensor(0.3), torch.tensor(angle, dtype=torch.float64)).float()
    assert angular_distance(u, v).item() == pytest.approx(angle, abs=3e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_distance_has_a_finite_gradient_at_both_ends(sign: int) -> None:
    v = directions(20).float()
    u = (sign * v).requires_grad_()
    distance = angular_distance(u, v, eps=1e-12)
    distance.sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert distance.tolist() == pytest.approx([0 if sign > 0 else math.pi] * 20, abs=2e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.1, 0.3, 2.0, 30.0, 500.0])
def test_density_integrates_to_one(kappa: float) -> None:
    log_c = vmf_log_normaliser(torch.tensor(kappa, dtype=torch.float64)).item()
    # in w = 1 - cos t, in pieces, since a sharp density lies wholly near w = 0
    edges = [0, *np.geomspace(1e-4, 2, 12)]
    pieces = [quad(lambda w: 2 * math.pi * math.exp(log_c + kappa * (1 - w)), a, b)[0] for a, b in pairwise(edges)]
    assert sum(pieces) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_normaliser_in_single_precision(kappa: float) -> None:
    k = torch.tensor(kappa, requires_grad=True)
    value = vmf_log_normaliser(k)
    value.backward()
    x = float(k.detach())
    sinhc = x * x / 6 if x < 1e-3 else x + math.log(-math.expm1(-2 * x)) - math.log(2 * x)
    slope = -x / 3 if x < 1e-3 else 1 / x - 1 / math.tanh(x)
    assert value.item() == pytest.approx(-math.log(4 * math.pi) - sinhc, rel=3e-7)
    assert k.grad is not None
    assert k.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kappa", [1e-3, 0.1, 0.5, 1.5, 20.0, 1e3, 1e5])
def test_likelihood_is_that_of_scipy(kappa: float) -> None:
    mean, truth = directions(1)[0], directions(40, seed=2)
    theirs = vonmises_fisher(mean.numpy(), kappa).logpdf(truth.numpy())
    ours = -vmf_loss(kappa * mean.expand_as(truth), truth)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-10)


def test_likelihood_of_sharp_predictions_does_not_cancel_in_single_precision() -> None:
    truth = directions(200, seed=3)
    near = torch.nn.functional.normalize(truth + 1e-3 * directions(200, seed=4), dim=-1)
    p = 1e6 * near
    torch.testing.assert_close(vmf_loss(p.float(), truth.float()).double(), vmf_loss(p, truth), rtol=1e-3, atol=1e-3)
    # as a plain difference it is wrong in the first digit
    plain = -vmf_log_normaliser(p.float().norm(dim=-1)) - (p.float() * truth.float()).sum(-1)
    assert (plain.double() - vmf_loss(p, truth)).abs().max() > 0.02


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("case", ["equal", "opposite", "any"])
@pytest.mark.parametrize("loss", [vmf_loss, angular_loss, cosine_loss])
def test_losses_and_gradients_are_finite(loss: Callable[[Tensor, Tensor], Tensor], case: str, kappa: float) -> None:
    n = directions(50, seed=5).float()
    u = {"equal": n, "opposite": -n, "any": directions(50, seed=6).float()}[case]
    p = (kappa * u).requires_grad_()
    value = loss(p, n)
    value.sum().backward()
    assert value.shape == (50,)
    assert value.isfinite().all()
    assert p.grad is not None
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("kappa", [1e-4, 0.1, 0.7, 3.0, 200.0])
def test_gradient_of_the_likelihood(kappa: float) -> None:
    n, u = directions(30, seed=7), directions(30, seed=8)
    p = (kappa * u).float().requires_grad_()
    vmf_loss(p, n.float()).sum().backward()
    length = kappa / 3 if kappa < 1e-3 else 1 / math.tanh(kappa) - 1 / kappa  # mean of u.x under the distribution
    assert p.grad is not None
    torch.testing.assert_close(p.grad.double(), length * u - n, rtol=0, atol=2e-6)


def test_losses_of_known_angles() -> None:
    n = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    p = torch.tensor([[0.0, 0, 5], [2, 0, 0], [0, 0, -0.1]])
    assert angular_loss(p, n).tolist() == pytest.approx([0, math.pi / 2, math.pi], abs=2e-6)
    assert cosine_loss(p, n).tolist() == pytest.approx([0, 1, 2], abs=1e-6)


def test_losses_ignore_autocast() -> None:
    n, p = directions(20, seed=9).float(), 50 * directions(20, seed=9).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = [loss(p, n) for loss in (vmf_loss, angular_loss, cosine_loss)]
    for loss, value in zip((vmf_loss, angular_loss, cosine_loss), inside, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(p, n))
    assert vmf_loss(p.half(), n.half()).dtype == torch.float32


def test_weighted_sum_of_losses() -> None:
    n, p = directions(16, seed=10).float(), (4 * directions(16, seed=11)).float().requires_grad_()
    terms = DirectionalLoss({"angular": 1.0, "vmf": 0.05, "cosine": 0.0})(p, n)
    assert set(terms) == {"loss", "angular", "vmf", "cosine"}
    torch.testing.assert_close(terms["loss"], angular_loss(p, n).mean() + 0.05 * vmf_loss(p, n).mean())
    torch.testing.assert_close(terms["cosine"], cosine_loss(p, n).mean())
    terms["loss"].backward()
    assert p.grad is not None
    assert p.grad.abs().sum() > 0


def test_losses_are_found_by_name_or_path() -> None:
    assert LOSSES.find("vmf") is vmf_loss
    assert LOSSES.names() == ["angular", "cosine", "vmf"]
    path = "manyscope.nn.directional:cosine_loss"
    terms = DirectionalLoss({path: 2.0})(torch.ones(1, 3), torch.tensor([[0.0, 0, 1]]))
    torch.testing.assert_close(terms["loss"], 2 * terms[path])
    with pytest.raises(ManyscopeError, match="did you mean 'cosine'"):
        DirectionalLoss({"cosin": 1.0})


@pytest.mark.parametrize(
    "weights", [{}, {"vmf": 0.0}, {"vmf": -1.0}, {"vmf": math.nan}, {"vmf": 1.0, "cosine": math.inf}]
)
def test_weights_must_make_sense(weights: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="at least one of them > 0"):
        DirectionalLoss(weights)


@pytest.mark.parametrize("kappa", [0.3, 5.0, 400.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.68, 0.95])
def test_cone_holds_its_share(kappa: float, share: float) -> None:
    draws = vonmises_fisher([0, 0, 1], kappa).rvs(40_000, random_state=np.random.default_rng(0))
    inside = (np.arccos(np.clip(draws[:, 2], -1, 1)) < vmf_cone(kappa, share)).mean()
    assert inside == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 40_000))


def test_cone_in_the_limits() -> None:
    shares = np.array([0.0, 1e-6, 0.25, 0.5, 0.9, 1.0])
    uniform = np.arccos(1 - 2 * shares)
    np.testing.assert_allclose(vmf_cone(0.0, shares), uniform, rtol=1e-9)
    np.testing.assert_allclose(vmf_cone(1e-12, shares), uniform, rtol=1e-6, atol=1e-9)
    # a sharp distribution is a plane Gaussian of width 1 / sqrt(kappa)
    gauss = np.sqrt(-2 * np.log1p(-shares[:-1]) / 1e10)
    np.testing.assert_allclose(vmf_cone(1e10, shares[:-1]), gauss, rtol=1e-6)
    np.testing.assert_allclose(vmf_cone(np.array([0.0, 1e-9, 3.0, 50.0, 1e6]), 1.0), math.pi, rtol=1e-7)


@given(st.floats(1e-3, 1e6), st.floats(0.01, 0.99))
def test_concentration_of_a_cone_inverts_it(kappa: float, share: float) -> None:
    assert kappa_of_cone(vmf_cone(kappa, share), share) == pytest.approx(kappa, rel=1e-6)


def test_concentration_of_a_cone_is_monotone_and_clipped() -> None:
    found = kappa_of_cone(np.array([0.0, 1e-5, 0.01, 0.5, 1.5, 2.0, math.pi]), 0.5)
    assert (np.diff(found) <= 0).all()
    assert found[[0, 1]].tolist() == [1e6, 1e6]
    assert found[[-2, -1]].tolist() == [0, 0]  # half of the sphere lies within pi / 2 already
    assert 0 < found[4] < found[3] < found[2] < 1e6
