"""Pictures of a paired run as SVG: how the arms part over depth, and along the gold answers."""

from __future__ import annotations

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moecheck.evals.paired.isolated import LayerDepth
from moecheck.report.plots import INK, RIGHT, STYLE, WRONG, svg_markup

_LEAST = 1e-9  # what is drawn for no difference at all, on a logarithmic scale


def depth_svg(depth: tuple[LayerDepth, ...], band: tuple[LayerDepth, ...]) -> Markup:
    """|candidate - baseline| / |baseline| at each MoE layer: of its output on the baseline's hidden states, and on the
    candidate's own; the shade is what legal variants do on their own.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0))
        figure.subplots_adjust(left=0.16, right=0.97, bottom=0.17, top=0.97)
        axes = figure.add_subplot()
        layers = [layer.layer for layer in depth]
        if band:
            high = [max(layer.output, _LEAST) for layer in band]
            axes.fill_between([layer.layer for layer in band], [_LEAST] * len(band), high, color="#8f96a3", alpha=0.25)
            axes.plot(
                [layer.layer for layer in band], high, color="#8f96a3", linewidth=1, label="legal variants, at most"
            )
        own = [max(layer.output, _LEAST) for layer in depth]
        isolated = [max(layer.isolated, _LEAST) for layer in depth]
        axes.plot(layers, own, color=WRONG, marker="o", label="on its own hidden states")
        axes.plot(layers, isolated, color=RIGHT, marker="s", linestyle="--", label="on the baseline's")
        axes.set_yscale("log")
        top = max([*own, *isolated, *(layer.output for layer in band), _LEAST * 10])
        low = min([*own, *isolated, *(layer.output for layer in band)])
        axes.set_ylim(max(low, _LEAST) / 3, top * 3)
        _plain_ticks(axes)
        axes.set_xticks(layers)
        axes.set_xlabel("MoE layer")
        axes.set_ylabel("departure of the block's output")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        return svg_markup(figure, "departure of the candidate over depth")


def positions_svg(points: list[tuple[float, float, float]]) -> Markup:
    """Mean and largest KL by position in the gold answer."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0))
        figure.subplots_adjust(left=0.16, right=0.97, bottom=0.17, top=0.97)
        axes = figure.add_subplot()
        places = [place for place, _, _ in points]
        axes.plot(places, [max(mean, 1e-16) for _, mean, _ in points], color=RIGHT, label="mean")
        axes.plot(places, [max(most, 1e-16) for _, _, most in points], color=WRONG, linewidth=1, label="largest")
        axes.set_yscale("log")
        _plain_ticks(axes)
        axes.set_xlabel("token of the gold answer")
        axes.set_ylabel("KL(baseline, candidate)")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        return svg_markup(figure, "divergence by position in the gold answer")


def _plain_ticks(axes: Axes) -> None:
    """1e-07 instead of powers that only mathematical typesetting shows."""
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
