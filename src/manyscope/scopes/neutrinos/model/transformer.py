"""Two levels: T1 makes a vector of the pulses of each module, T2 is a transformer over the modules of an event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.nn.across import share_of
from manyscope.nn.directional import DirectionalLoss
from manyscope.nn.ragged import segment_ids, to_padded
from manyscope.scopes.neutrinos.data.forms import Form
from manyscope.scopes.neutrinos.model import pulses
from manyscope.scopes.neutrinos.model.calibration import Calibration
from manyscope.scopes.neutrinos.model.pulses import Batch, signed_log

_ICE_SPEED_M_NS = 0.299792458 / 1.356  # of a group of photons
_MODULE_FEATURES, _ICE_FEATURES, _EVENT_FEATURES, _FIT_FEATURES = 21, 2, 6, 4
_PACKED_SLOTS = 512


class Transformer(nn.Module):
    """Direction of an event, with uncertainty.

    Args:
        t1: what makes a vector of the pulses of a module: `pool`, `attention`, `flat`, or `none`.
        width: of the tokens of T2.
        layers, heads, feedforward: of T2; feedforward in units of the width.
        pulse_width, pulse_heads: of T1.
        flat_pulses: pulses of a module that `flat` looks at.
        bias: `interval` adds to the attention between two modules a learned function of their distance in space,
            in time, and of both together; `none` does not.
        ice: whether a module knows the scattering and absorption length of the ice around it.
        line_fit: whether the network is given the line fit.
        vectors: weighted sums of the modules' positions that the head reads.
        rotate: turn and mirror each training event about the vertical: the ice depends on depth alone.
        loss: name of a loss -> weight; late_loss the same from the share `late_from` of the steps on, and for
            validation, so that its values can be compared all along.
    """

    def __init__(
        self,
        t1: Literal["pool", "attention", "flat", "none"] = "pool",
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        feedforward: float = 2,
        pulse_width: int = 32,
        pulse_heads: int = 4,
        flat_pulses: int = 16,
        bias: Literal["none", "interval"] = "none",
        ice: bool = True,
        line_fit: bool = False,
        vectors: int = 8,
        rotate: bool = True,
        loss: Mapping[str, float] | None = None,
        late_loss: Mapping[str, float] | None = None,
        late_from: float = 0.6,
    ) -> None:
        super().__init__()
        if t1 not in _T1:
            raise ValueError(f"t1 {t1!r} is unknown; allowed: {', '.join(_T1)}")
        if width % heads or pulse_width % pulse_heads:
            raise ValueError("width must be a multiple of heads, and pulse_width of pulse_heads")
        if bias not in ("none", "interval"):
            raise ValueError(f"bias {bias!r} is unknown; allowed: none, interval")
        self.ice, self.line_fit, self.rotate, self.late_from = ice, line_fit, rotate, late_from
        self.progress = 0.0  # share of the training that is done; set by the training
        features = _MODULE_FEATURES + (_ICE_FEATURES if ice else 0)
        self.module_in = _mlp(features, width)
        self.event_in = _mlp(_EVENT_FEATURES + (_FIT_FEATURES if line_fit else 0), width)
        self.t1 = _T1[t1](width, pulse_width, pulse_heads, flat_pulses)
        self.layers = nn.ModuleList(Layer(width, heads, int(feedforward * width)) for _ in range(layers))
        self.interval = nn.Parameter(torch.zeros(heads, 3)) if bias == "interval" else None
        self.norm = nn.LayerNorm(width)
        self.weights = nn.Linear(width, vectors)
        last = nn.Linear(2 * width, 3 + vectors)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.weight.mul_(0.5)
        self.head = nn.Sequential(nn.Linear(2 * width + 3 * vectors, 2 * width), nn.GELU(), last)
        loss = {"vmf": 1.0} if loss is None else loss
        self.loss = DirectionalLoss(loss)
        self.late_loss = DirectionalLoss({"angular": 1.0, "vmf": 0.05} if late_loss is None else late_loss)
        self.calibration = Calibration()

    @classmethod
    def input_form(cls, t1: str = "pool", flat_pulses: int = 16, **others: Any) -> Form:
        if t1 == "flat":
            return Form("flat", flat_pulses, beside=True)
        # On a GPU one block-sparse kernel over packed rows; on a CPU the buckets are faster.
        if t1 == "attention" and torch.cuda.is_available():
            return Form("packed", _PACKED_SLOTS, beside=True)
        return Form("ragged", beside=True)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A vector to where the particle came from, as long as it is sure, (n, 3), and latent vectors (n, width)."""
        device = batch["origin"].device.type
        counts = batch["module_counts"]
        event = segment_ids(counts, len(batch["modules"]))
        position = (batch["sensors"][:, :3] - batch["origin"][event, :3]) / 100
        # What is measured goes in, and what is answered comes out, in full precision: eight bits blur nanoseconds and
        # metres. T2 is where the time goes.
        with torch.autocast(device, enabled=False):
            tokens = self.module_in(torch.cat([self._module_features(batch), position], dim=1))
            if self.t1 is not None:
                tokens = tokens + self.t1(batch, event)
            summary = self.event_in(self._event_features(batch, event))
        x, mask = to_padded(tokens, counts, batch["length"])
        places, _ = to_padded(position, counts, batch["length"])
        x = torch.cat([summary[:, None], x], dim=1)
        bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -1e4)
        bias = F.pad(bias, (1, 0))[:, None, None]
        if self.interval is not None:
            first, _ = to_padded(batch["modules"][:, :1], counts, batch["length"])
            bias = bias + self._interval_bias(places, first[..., 0] * (_ICE_SPEED_M_NS / 100))
        for layer in self.layers:
            x = layer(x, bias)
        with torch.autocast(device, enabled=False):
            x = self.norm(x.float())
            summary, tokens = x[:, 0], x[:, 1:]
            n = counts[:, None].float()
            weights = self.weights(tokens) * mask[..., None]
            # Weighted sums of positions turn with the event, so that the network need not learn to turn them.
            vectors = weights.transpose(1, 2) @ places / n[..., None].sqrt()
            mean = (tokens * mask[..., None]).sum(1) / n
            out = self.head(torch.cat([summary, mean, vectors.flatten(1)], dim=1))
            return out[:, :3] + (torch.tanh(out[:, 3:, None]) * vectors).sum(1), summary

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Means over the events: "loss" and its parts; in eval mode the late loss, without augmentation."""
        if self.training and self.rotate:
            batch = turned(batch)
        early = self.training and self.progress < self.late_from
        return (self.loss if early else self.late_loss)(self(batch)[0], batch["direction"])

    def _module_features(self, batch: Batch) -> Tensor:
        first, charge, coincident, spread, delay, prompt = batch["modules"].unbind(1)
        z, scattering, absorption, _, dense = batch["sensors"][:, 2:].unbind(1)
        columns = [
            signed_log(first, 50),
            (first / 1000).clamp(-3, 3),
            charge.log() / 2,
            batch["pulses_seen"].log(),
            coincident,
            torch.log1p(spread / 20) / 2,
            torch.log1p(delay.clamp(min=0) / 20) / 2,
            prompt.clamp(min=0.02).log() / 2,
            dense,
            z / 500,
            *(torch.log1p(10 * batch["beside"][..., 0]) / 3).unbind(1),
            *(batch["beside"][..., 1] / 100).clamp(-3, 3).unbind(1),
        ]
        if self.ice:
            columns += [(scattering - 25) / 20, (absorption - 100) / 60]
        return torch.stack(columns, dim=1)

    def _event_features(self, batch: Batch, event: Tensor) -> Tensor:
        pulses_, modules, coincident = batch["counts"].unbind(1)
        charge = torch.zeros_like(pulses_).index_add(0, event, batch["modules"][:, 1] * batch["modules"][:, 2])
        columns = [
            charge.clamp(min=0.1).log() / 3,
            coincident.clamp(min=0.5).log() / 2,
            torch.log1p(modules) / 3 - 1,
            *(batch["origin"][:, :3] / 500).unbind(1),
        ]
        if self.line_fit:
            speed = batch["line_fit"].norm(dim=1)
            columns += [*(-F.normalize(batch["line_fit"], dim=1)).unbind(1), (speed / 0.3).clamp(0, 3)]
        return torch.stack(columns, dim=1)

    def _interval_bias(self, places: Tensor, times: Tensor) -> Tensor:
        """(n, heads, 1 + L, 1 + L), zero to and from the event's token: a learned sum of the distance, of the way
        that light goes in the time between, and of the root of the interval's size (all in 100 m, at most 10).

        The interval |dx|² - (c dt)², with the speed of light in ice, is zero for two modules that one flash of light
        can have lit directly; its use in attention is due to the second-placed entry of the IceCube competition,
        https://arxiv.org/abs/2310.15674.
        """
        distance2 = (places[:, :, None] - places[:, None]).square().sum(-1)
        way2 = (times[:, :, None] - times[:, None]).square()
        interval = (distance2 - way2).abs()
        parts = torch.stack([distance2, way2, interval], dim=-1).add(1e-6).sqrt().clamp(max=10)
        assert self.interval is not None
        return F.pad((-parts @ self.interval.T).permute(0, 3, 1, 2), (1, 0, 1, 0))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        for linear in (self.project, self.down):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(n, L, width), with `bias` (n, 1 or heads, 1 or L, L) added to the scores of the attention."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def turned(batch: Batch) -> Batch:
    """Each event turned about the vertical by a random angle, and every other one mirrored, truth and all."""
    n, device = len(batch["module_counts"]), batch["origin"].device
    share = share_of(n)
    angle = share.rand(device=device)[share.mine] * (2 * math.pi)
    mirror = torch.where(share.rand(device=device)[share.mine] < 0.5, -1.0, 1.0)
    turn = torch.zeros(n, 3, 3, device=device)
    turn[:, 0, 0], turn[:, 0, 1] = angle.cos(), -angle.sin() * mirror
    turn[:, 1, 0], turn[:, 1, 1] = angle.sin(), angle.cos() * mirror
    turn[:, 2, 2] = 1
    event = segment_ids(batch["module_counts"], len(batch["modules"]))

    def of(vectors: Tensor, turns: Tensor) -> Tensor:
        return (turns @ vectors[..., None])[..., 0]

    sensors, origin = batch["sensors"], batch["origin"]
    return {
        **batch,
        "sensors": torch.cat([of(sensors[:, :3], turn[event]), sensors[:, 3:]], dim=1),
        "origin": torch.cat([of(origin[:, :3], turn), origin[:, 3:]], dim=1),
        "line_fit": of(batch["line_fit"], turn),
        "direction": of(batch["direction"], turn),
    }


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))


_T1: dict[str, Any] = {
    "pool": lambda width, pulse_width, heads, count: pulses.Pool(width, pulse_width, heads),
    "attention": lambda width, pulse_width, heads, count: pulses.Attention(width, pulse_width, heads),
    "flat": lambda width, pulse_width, heads, count: pulses.Flat(width, count),
    "none": lambda width, pulse_width, heads, count: None,
}
