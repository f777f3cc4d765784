"""How numbers moved from run to run, as SVG to be put into a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from moecheck.report.plots import INK, RIGHT, STYLE, WRONG, svg_markup

_SIZE = (4.2, 1.9)  # inches
_DATES = 4  # labels of the axis of time, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One number over time. values: one for each run, None where it was not measured. log: on a logarithmic scale.

    band: what its uncertainty is, one number for each run, for an error bar.
    """

    title: str
    values: tuple[float | None, ...]
    log: bool = False
    band: tuple[float | None, ...] | None = None


def trend_svg(times: Sequence[datetime], failed: Sequence[bool], panel: Panel) -> Markup | None:
    """One number over time; runs that failed are marked. None where fewer than two runs have it.

    times: of the runs, ascending. Numbers that are not finite are drawn at the upper edge.
    """
    if sum(value is not None for value in panel.values) < 2:
        return None
    with mpl.rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=_SIZE)
        figure.subplots_adjust(left=0.15, right=0.97, bottom=0.14, top=0.95)
        axes = figure.add_subplot()
        days = [time.timestamp() / 86400 for time in times]
        _draw(axes, days, failed, panel)
        _dates(axes, times, days)
        return svg_markup(figure, f"{panel.title} from run to run")


def _draw(axes: Axes, days: Sequence[float], failed: Sequence[bool], panel: Panel) -> None:
    log = panel.log and any(value is not None and 0 < value < math.inf for value in panel.values)
    known = [
        (day, value, bad)
        for day, value, bad in zip(days, panel.values, failed, strict=True)
        if value is not None and math.isfinite(value) and (value > 0 or not log)
    ]
    axes.plot([day for day, _, _ in known], [value for _, value, _ in known], color=RIGHT, linewidth=1.3)
    for wrong, color, marker in ((False, RIGHT, "."), (True, WRONG, "X")):
        chosen = [(day, value) for day, value, bad in known if bad == wrong]
        if chosen:
            size = 4 if not wrong else 6
            axes.plot(*zip(*chosen, strict=True), color=color, marker=marker, markersize=size, linestyle="none")
    if panel.band is not None:
        pairs = dict(zip(days, panel.band, strict=True))
        reach = [pairs[day] or 0.0 for day, _, _ in known]
        axes.errorbar(
            [day for day, _, _ in known], [value for _, value, _ in known], yerr=reach, fmt="none", ecolor=RIGHT,
            elinewidth=0.8, alpha=0.6,
        )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    beyond = [
        day
        for day, value in zip(days, panel.values, strict=True)
        if value is not None and not math.isfinite(value)
    ]  # fmt: skip
    if beyond:
        axes.plot(
            beyond, [1.0] * len(beyond), color=WRONG, marker="^", linestyle="none", clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    _scale(axes, [value for _, value, _ in known], log=log)


def _scale(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    """Plain numbers at the ticks, and room where all values are the same."""
    if log:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 3, max(values) * 3)
        wide = max(values) > 1e3 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=5))
    else:
        least, most = min(values, default=0.0), max(values, default=0.0)
        room = 0.2 * max(most - least, abs(most), abs(least)) or 1.0
        axes.set_ylim(0 if least >= 0 else least - room, most + room)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:.3g}"))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)


def _dates(axes: Axes, times: Sequence[datetime], days: Sequence[float]) -> None:
    """Some of the runs' days; with the time of day where all runs are of one or two days."""
    step = max(1, math.ceil(len(days) / _DATES))
    shown = list(range(0, len(days), step))
    text = "%d %b" if (times[-1] - times[0]).days > 1 else "%d %b %H:%M"
    axes.xaxis.set_major_locator(FixedLocator([days[index] for index in shown]))
    labels = {days[index]: times[index].strftime(text) for index in shown}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: labels.get(value, "")))
    reach = max(days) - min(days) or 1.0
    axes.set_xlim(min(days) - reach * 0.03, max(days) + reach * 0.03)
