"""Pictures of single events in space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from manyscope.evaluation.figures import COLOURS, new_figure
from manyscope.nn.directional import vmf_cone
from manyscope.scopes.neutrinos.data.prepare import META
from manyscope.scopes.neutrinos.data.shards import CHARGE, FIRST_NS, Z_M
from manyscope.scopes.neutrinos.evaluate.judged import Judged, shard_and_event
from manyscope.tables.whole import read_json

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.data.loading import EventData

CAPTION = (
    "Test events at fixed quantiles of the error: modules that saw light, coloured by time and sized by charge, "
    "and the particle arriving from its true direction, from the predicted one with its 68 % cone, and by the line fit."
)
_ARROWS: dict[str, tuple[str, Any]] = {
    "true": ("black", "-"),
    "prediction": (COLOURS[3], "-"),
    "line fit": (COLOURS[5], "--"),
}
_ARROW_SHARE = 0.5  # length of an arrow, of the detector's greatest extent
_FAINT_DOTS = 1000
_COLUMNS = 3


def draw(data: EventData, events: Judged, count: int) -> Figure:
    """At most `count` test events, from the one best predicted to the worst."""
    count = min(count, len(events))
    quantiles = (np.arange(count) + 0.5) / count
    order = np.argsort(events.error, kind="stable")
    columns = min(_COLUMNS, count)
    figure, axes = new_figure(
        -(-count // columns), columns, panel=(4.2, 4.0), subplot_kw={"projection": "3d", "computed_zorder": False}
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis, quantile in zip(axes.flat, quantiles, strict=False):
        _draw_event(axis, data, events, int(order[int(quantile * len(events))]), f"quantile {quantile:.2f}")
    handles = [Line2D([], [], color=c, ls=dashes, label=name) for name, (c, dashes) in _ARROWS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    bar = figure.colorbar(
        ScalarMappable(cmap="viridis"), ax=axes, shrink=0.4, ticks=[0, 1], label="first light", pad=0, aspect=25
    )
    bar.ax.set_yticklabels(["early", "late"])
    return figure


def _draw_event(axis: Any, data: EventData, events: Judged, index: int, name: str) -> None:
    shard, event = shard_and_event(data, int(events.row[index]))
    modules = slice(shard.module_offsets[event], shard.module_offsets[event + 1])
    light, sensor = shard.modules[modules], shard.sensor[modules]
    where = data.sensors[sensor, : Z_M + 1].astype(np.float64)
    array = _array_of(data, int(sensor[0]))
    near = np.arange(len(light)) < max(1, shard.shown[event, 1])
    centre, low, high = shard.origin[event, :3].astype(np.float64), array.min(0), array.max(0)
    length = _ARROW_SHARE * float((high - low).max())

    # The order of drawing, since all of it shares one space: array, light, cones, arrows.
    axis.scatter(
        *array[:: -(-len(array) // _FAINT_DOTS)].T, s=1.5, color="0.75", linewidths=0, depthshade=False, zorder=1
    )
    axis.scatter(*where[~near].T, s=4, color="0.55", linewidths=0, depthshade=False, zorder=2)
    size = 8 + 22 * np.log10(1 + light[near, CHARGE])
    early, late = np.quantile(light[near, FIRST_NS], [0.05, 0.95])  # strays do not take all the colours
    axis.scatter(
        *where[near].T, s=size, c=light[near, FIRST_NS], vmin=early, vmax=late, cmap="viridis", linewidths=0, alpha=0.9,
        depthshade=False, zorder=3,
    )  # fmt: skip
    ways = {"true": events.true[index], "prediction": events.model[index], "line fit": events.line_fit[index]}
    half_angle = float(vmf_cone(events.kappa[index], 0.68))
    rim = _cone(axis, centre, ways["prediction"], half_angle, length)
    for who, (colour, dashes) in _ARROWS.items():
        start = centre + length * ways[who]  # a particle arrives from its direction: the arrow ends where the light is
        axis.quiver(
            *start, *(centre - start), color=colour, linestyle=dashes, linewidth=1.8, arrow_length_ratio=0.12, zorder=5
        )
    everything = np.concatenate([array, rim, [centre + length * way for way in ways.values()]])
    low, high = everything.min(0), everything.max(0)
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axis.set_box_aspect(np.maximum(high - low, 1.0), zoom=1.3)
    axis.view_init(elev=12, azim=float(np.degrees(np.arctan2(ways["true"][1], ways["true"][0]))) + 90)
    axis.set_axis_off()
    kind = "" if events.kind is None else f"{events.kind[index]}, "
    energy = "" if events.energy_gev is None else f"{_energy(events.energy_gev[index])}, "
    error = np.degrees([events.error[index], events.line_fit_error[index], half_angle])
    axis.set_title(
        f"{name}: {kind}{energy}{events.n_pulses[index]} pulses\nerror {error[0]:.1f}° (line fit {error[1]:.1f}°), "
        f"68 % cone {error[2]:.1f}°",
        fontsize=9,
        loc="center",
    )


def _cone(axis: Any, apex: np.ndarray, direction: np.ndarray, half_angle: float, length: float) -> np.ndarray:
    """Draw the rim of a cone, which is returned, and some of its rays; wider than a right angle, it opens away from the
    direction."""
    across = np.cross(direction, [0, 0, 1] if abs(direction[2]) < 0.9 else [1, 0, 0])
    across /= np.linalg.norm(across)
    other = np.cross(direction, across)
    turn = np.linspace(0, 2 * np.pi, 73)[:, None]
    rim = apex + length * (
        np.cos(half_angle) * direction + np.sin(half_angle) * (np.cos(turn) * across + np.sin(turn) * other)
    )
    colour = _ARROWS["prediction"][0]
    axis.plot(*rim.T, color=colour, linewidth=1, alpha=0.8, zorder=4)
    for point in rim[:-1:6]:
        axis.plot(*np.stack([apex, point]).T, color=colour, linewidth=0.6, alpha=0.3, zorder=4)
    return rim


def _array_of(data: EventData, sensor: int) -> np.ndarray:
    """Positions of all modules of the detector that this row of the table of sensors belongs to, (sensors, 3) m."""
    ends = np.cumsum(read_json(data.folder / META)["sensors"])
    number = int(np.searchsorted(ends, sensor, "right"))
    return data.sensors[(ends[number - 1] if number else 0) : ends[number], : Z_M + 1]


def _energy(energy_gev: float) -> str:
    """In the unit that needs the fewest digits."""
    if not np.isfinite(energy_gev):
        return "energy unknown"
    return f"{energy_gev:.3g} GeV" if energy_gev < 1e3 else f"{energy_gev / 1e3:.3g} TeV"
