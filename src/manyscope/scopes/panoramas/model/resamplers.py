"""From an encoder's tokens to fewer, narrower or otherwise mixed ones.

A resampler is made of the width and the side of the grid of its input, the width of its output, and its own arguments.
It takes (samples, …, grid, grid, width): what is between, such as views, is kept. Nothing here draws random numbers but
`MaskedDrop`, because what several processes draw must not depend on who draws it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyscope.errors import ManyscopeError, MissingDependencyError
from manyscope.nn.across import share_of
from manyscope.registry import Registry
from manyscope.scopes.panoramas.settings import ResamplerSettings

_HERE = "manyscope.scopes.panoramas.model.resamplers"
RESAMPLERS = Registry(
    "resampler",
    {
        "mlp": f"{_HERE}:Mlp",
        "qformer": f"{_HERE}:QFormer",
        "perceiver": f"{_HERE}:Perceiver",
        "c_abstractor": f"{_HERE}:CAbstractor",
        "spatial_pool": f"{_HERE}:SpatialPool",
        "masked_drop": f"{_HERE}:MaskedDrop",
        "bimamba": f"{_HERE}:BiMamba",
    },
)
_TRUNCATED_STD = 0.02  # of learned queries


class Resampler(nn.Module):
    """What a resampler must be.

    Args:
        grid: side of the output's grid; None where the tokens lie on none.
        tokens: of the output, for one view.
        width: of an output token.
    """

    def __init__(self, grid: int | None, tokens: int, width: int) -> None:
        super().__init__()
        self.grid, self.tokens, self.width = grid, tokens, width

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Args:
            tokens: (samples, …, grid, grid, width in).

        Returns:
            (samples, …, tokens, width); in rows downwards, if they lie on a grid.
        """
        mixed: Tensor = self.mix(tokens.flatten(0, -4))
        return mixed.unflatten(0, tokens.shape[:-3])

    def mix(self, tokens: Tensor) -> Tensor:
        """(n, grid, grid, width in) -> (n, tokens, width)."""
        raise NotImplementedError

    def unseen(self, samples: int, *shape: int, device: torch.device) -> Tensor | None:
        """Which tokens the language model is not shown in this step of the training, (samples, *shape) bool, the
        tokens of a view last; None shows it all."""
        return None


def build_resampler(settings: ResamplerSettings, width: int, grid: int) -> Resampler:
    """
    Args:
        width: of the encoder's tokens.
        grid: side of their grid.

    Raises:
        ManyscopeError: the name is unknown, or names no resampler.
        SettingsError: the resampler does not take its arguments.
        MissingDependencyError: a package that it needs is not installed.
    """
    made = RESAMPLERS.build(settings.name, width, grid, settings.width, place="model.resampler.args", **settings.args)
    if not isinstance(made, Resampler):
        raise ManyscopeError(
            f"{settings.name!r} makes no resampler, but {type(made).__name__}",
            place="model.resampler.name",
            allowed="a class derived from manyscope.scopes.panoramas.model.resamplers:Resampler",
        )
    return made


class Mlp(Resampler):
    """Each token by itself: `depth` linear layers with LayerNorm and GELU between them.

    Args:
        hidden: neurons of the layers between; None is twice the output's width.
        norm: whether there is a LayerNorm before each GELU.
        pool_tokens: average the row of tokens to so many, in an order that is no grid any more.
    """

    def __init__(
        self,
        inputs: int,
        grid: int,
        width: int,
        depth: int = 3,
        hidden: int | None = None,
        norm: bool = True,
        pool_tokens: int | None = None,
    ) -> None:
        _at_least(1, depth=depth, pool_tokens=pool_tokens, hidden=hidden)
        super().__init__(None if pool_tokens else grid, pool_tokens or grid * grid, width)
        self.layers = _perceptron(inputs, hidden or 2 * width, width, depth, norm)
        self.pool = nn.AdaptiveAvgPool1d(pool_tokens) if pool_tokens else None

    def mix(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.layers(tokens.flatten(1, 2))
        return mixed if self.pool is None else self.pool(mixed.mT).mT


class QFormer(Resampler):
    """Learned queries that read the tokens: blocks of self-attention, cross-attention and a perceptron, each followed
    by its norm, and a linear layer. Li et al. 2023, https://arxiv.org/abs/2301.12597, without its text.

    Args:
        queries: and so output tokens.
        depth: blocks.
        heads: of the attention; they divide the input's width.
    """

    def __init__(self, inputs: int, grid: int, width: int, queries: int = 64, depth: int = 6, heads: int = 8) -> None:
        _at_least(1, queries=queries, depth=depth, heads=heads)
        if inputs % heads:
            raise ValueError(f"the encoder's width {inputs} is no multiple of heads {heads}")
        super().__init__(None, queries, width)
        self.queries = _queries(queries, inputs)
        self.norm = nn.LayerNorm(inputs)
        block = nn.TransformerDecoderLayer(inputs, heads, 4 * inputs, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerDecoder(block, depth)
        for parameter in self.blocks.parameters():  # the copies of one block would be alike
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.out = nn.Linear(inputs, width)

    def mix(self, tokens: Tensor) -> Tensor:
        queries = self.norm(self.queries).expand(len(tokens), -1, -1)
        mixed: Tensor = self.out(self.blocks(queries, tokens.flatten(1, 2)))
        return mixed


class Perceiver(Resampler):
    """Learned latents that read the tokens and themselves, in blocks of one attention and a perceptron, with the norms
    before them. Alayrac et al. 2022, https://arxiv.org/abs/2204.14198, section 3.1.1.

    Args:
        latents: and so output tokens.
        depth: blocks.
        heads, head_width: of the attention.
    """

    def __init__(
        self,
        inputs: int,
        grid: int,
        width: int,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_width: int = 64,
    ) -> None:
        _at_least(1, latents=latents, depth=depth, heads=heads, head_width=head_width)
        super().__init__(None, latents, width)
        self.inward = nn.Linear(inputs, width)
        self.latents = _queries(latents, width)
        self.blocks = nn.ModuleList(_PerceiverBlock(width, heads, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def mix(self, tokens: Tensor) -> Tensor:
        seen = self.inward(tokens.flatten(1, 2))
        latents = self.latents.expand(len(tokens), -1, -1)
        for block in self.blocks:
            latents = block(latents, seen)
        normed: Tensor = self.norm(latents)
        return normed


class _PerceiverBlock(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm_latents, self.norm_seen = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tensor, seen: Tensor) -> Tensor:
        asking = self.norm_latents(latents)
        context = torch.cat([self.norm_seen(seen), asking], 1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(asking), *self.key_value(context).chunk(2, -1))
        )
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        latents = latents + self.out(read)
        fed: Tensor = latents + self.feed(latents)
        return fed


class CAbstractor(Resampler):
    """Convolutions, a mean over neighbours, and convolutions again. Cha et al. 2024, https://arxiv.org/abs/2312.06742;
    its blocks are written with depthwise convolutions and LayerNorm.

    Args:
        hidden: channels.
        blocks: before, and as many behind the mean.
        queries: output tokens, a square number; None keeps the grid.
    """

    def __init__(
        self, inputs: int, grid: int, width: int, hidden: int = 1024, blocks: int = 3, queries: int | None = None
    ) -> None:
        _at_least(1, hidden=hidden, blocks=blocks, queries=queries)
        side = grid if queries is None else math.isqrt(queries)
        if queries is not None and side * side != queries:
            raise ValueError(f"queries {queries} is no square number")
        super().__init__(side, side * side, width)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            *(_ConvBlock(hidden) for _ in range(blocks)),
            _Pool(nn.AdaptiveAvgPool2d(side)),
            *(_ConvBlock(hidden) for _ in range(blocks)),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def mix(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.layers(tokens)
        return mixed.flatten(1, 2)


class _ConvBlock(nn.Module):
    """A 7 x 7 convolution of each channel, a perceptron across channels that is scaled by the picture as a whole, and
    the input added. (n, h, w, channels) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.grow, self.shrink = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.scale = nn.Sequential(
            nn.Linear(inner, max(1, channels // 4)), nn.SiLU(), nn.Linear(max(1, channels // 4), inner), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        grown = F.silu(self.grow(self.norm(spread)))
        squeezed: Tensor = self.scale(grown.mean((1, 2), keepdim=True))
        out: Tensor = x + self.shrink(grown * squeezed)
        return out


class _Pool(nn.Module):
    """A layer for (n, channels, h, w), given (n, h, w, channels)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return pooled.permute(0, 2, 3, 1)


class SpatialPool(Resampler):
    """A coarser grid, then a perceptron of two layers.

    Args:
        factor: so many tokens along an edge become one.
        mode: average, max, or conv, which is a learned convolution.
        hidden: neurons between the two layers; None is twice the output's width.
    """

    def __init__(
        self, inputs: int, grid: int, width: int, factor: int = 4, mode: str = "average", hidden: int | None = None
    ) -> None:
        _at_least(1, factor=factor, hidden=hidden)
        modes = {
            "average": lambda: nn.AvgPool2d(factor),
            "max": lambda: nn.MaxPool2d(factor),
            "conv": lambda: nn.Conv2d(inputs, inputs, factor, factor),
        }
        if mode not in modes:
            raise ValueError(f"mode {mode!r} is none of {', '.join(modes)}")
        if grid % factor:
            raise ValueError(f"the encoder's grid of {grid} x {grid} tokens is no multiple of factor {factor}")
        side = grid // factor
        super().__init__(side, side * side, width)
        self.pool = _Pool(modes[mode]())
        self.layers = _perceptron(inputs, hidden or 2 * width, width, 2, norm=False)

    def mix(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.layers(self.pool(tokens).flatten(1, 2))
        return mixed


class MaskedDrop(Resampler):
    """A perceptron of two layers; while training, the language model is shown a random part of each view's tokens.

    All are computed and keep their places, so that codes of place stay with them.

    Args:
        keep: share that is shown, or the least and the largest, between which each step draws one.
        hidden: neurons between the two layers; None is twice the output's width.
    """

    def __init__(
        self,
        inputs: int,
        grid: int,
        width: int,
        keep: float | Sequence[float] = 0.5,
        hidden: int | None = None,
    ) -> None:
        _at_least(1, hidden=hidden)
        least, most = (keep, keep) if isinstance(keep, (int, float)) else keep
        if not 0 < least <= most <= 1:
            raise ValueError(f"keep {keep} is no share from 0 to 1, nor two in order")
        super().__init__(grid, grid * grid, width)
        self.keep = (float(least), float(most))
        self.layers = _perceptron(inputs, hidden or 2 * width, width, 2, norm=False)

    def mix(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.layers(tokens.flatten(1, 2))
        return mixed

    def unseen(self, samples: int, *shape: int, device: torch.device) -> Tensor | None:
        if not self.training:
            return None
        share = share_of(samples)
        least, most = self.keep
        part = least + (most - least) * float(share.rand(device=device)[0])
        rank = share.rand(*shape, device=device)[share.mine].argsort(-1).argsort(-1)
        return rank >= max(1, round(part * shape[-1]))


class BiMamba(Resampler):
    """Blocks of two selective state-space models along the row of tokens, one of them from its end. Gu and Dao 2023,
    https://arxiv.org/abs/2312.00752.

    Args:
        hidden: width of the blocks.
        depth: blocks.
        state, conv, expand: of `mamba_ssm.Mamba`: d_state, d_conv, expand.

    Raises:
        MissingDependencyError: mamba_ssm is not installed.
    """

    def __init__(
        self,
        inputs: int,
        grid: int,
        width: int,
        hidden: int = 1024,
        depth: int = 4,
        state: int = 64,
        conv: int = 4,
        expand: int = 2,
    ) -> None:
        _at_least(1, hidden=hidden, depth=depth, state=state, conv=conv, expand=expand)
        super().__init__(grid, grid * grid, width)
        try:
            mamba = importlib.import_module("mamba_ssm").Mamba
        except ImportError as error:
            raise MissingDependencyError(
                f"the resampler bimamba needs the package mamba_ssm ({error})",
                place="model.resampler.name",
                remedy="install mamba-ssm on a machine with CUDA, or choose another resampler, such as c_abstractor",
            ) from error
        self.inward = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.LayerNorm(hidden),
                "forth": mamba(d_model=hidden, d_state=state, d_conv=conv, expand=expand),
                "back": mamba(d_model=hidden, d_state=state, d_conv=conv, expand=expand),
            })
            for _ in range(depth)
        )  # fmt: skip
        self.outward = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def mix(self, tokens: Tensor) -> Tensor:
        x = self.inward(tokens.flatten(1, 2))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            normed = block["norm"](x)
            x = x + 0.5 * (block["forth"](normed) + block["back"](normed.flip(1)).flip(1))
        mixed: Tensor = self.outward(x)
        return mixed


def _perceptron(inputs: int, hidden: int, outputs: int, depth: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(inputs, hidden), *([nn.LayerNorm(hidden)] if norm else []), nn.GELU()]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _queries(number: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(number, width), std=_TRUNCATED_STD))


def _at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} {number} is below {least}")
