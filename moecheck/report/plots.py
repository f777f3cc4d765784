"""Pictures of an error as SVG to be put into a page: text in the page's own colour, light or dark."""

from __future__ import annotations

import math
import re
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from moecheck.report.picture import EDGES, Z_EDGES, ErrorPicture

RIGHT, WRONG = "#5b8fd9", "#e5484d"
RANGE = (1e-3, 1e3)  # of |out - ref| / allowed in the heat map's colours; the bound, 1, is the break in the middle
INK = "#010203"  # stands for the page's text colour
STYLE: Any = {  # typed by matplotlib as a dictionary of hundreds of literal keys
    "svg.fonttype": "none",
    "svg.hashsalt": "moecheck",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
}
_COLORS = LinearSegmentedColormap.from_list(
    "excess", [(0.0, "#8f96a31f"), (0.5, RIGHT + "90"), (0.5, "#ffb224"), (0.7, "#f2603c"), (1.0, "#e0006c")]
)


def heat_map_svg(picture: ErrorPicture) -> Markup:
    """Rows x columns of the output, coloured by the largest |out - ref| / allowed of each cell."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 3.1))
        figure.subplots_adjust(left=0.13, right=0.9, bottom=0.16, top=0.97)
        axes = figure.add_subplot()
        rows, columns = picture.shape
        image = axes.imshow(
            np.clip(picture.excess, *RANGE),
            cmap=_COLORS,
            norm=LogNorm(*RANGE),
            aspect="auto",
            interpolation="none",
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )
        axes.set_xlabel(picture.axes[1])
        axes.set_ylabel(picture.axes[0])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        bar = figure.colorbar(image, ax=axes, ticks=[1e-3, 1e-2, 0.1, 1, 10, 100, 1e3], pad=0.02)
        bar.ax.set_yticklabels(["≤ 0.001", "0.01", "0.1", "1 allowed", "10", "100", "≥ 1000"])
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        return svg_markup(figure, f"heat map of the error by {picture.axes[0]} and {picture.axes[1]}")


def histogram_svg(picture: ErrorPicture) -> Markup:
    """Number of elements by |out - ref| / allowed, with the bound marked."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.5))
        figure.subplots_adjust(left=0.19, right=0.95, bottom=0.2, top=0.97)
        axes = figure.add_subplot()
        step = EDGES[1] / EDGES[0]
        left = np.concatenate([[EDGES[0] / step], EDGES])  # the outer bins are drawn one step wide
        colors = [WRONG if edge >= 1 else RIGHT for edge in left]
        axes.bar(left, picture.histogram, width=left * (step - 1), align="edge", color=colors, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlim(left[0], left[-1] * step)
        _label(axes, int(picture.histogram.max()))
        axes.axvline(1, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            "allowed", (1, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points", va="top"
        )
        return svg_markup(figure, "histogram of the error")


def z_histogram_svg(picture: ErrorPicture) -> Markup | None:
    """Number of elements by (out - ref) / sigma against the normal curve; None where sigma is not known.

    The outer bars are all elements beyond the edges.
    """
    if picture.z is None:
        return None
    counts, step = picture.z, float(Z_EDGES[1] - Z_EDGES[0])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.5))
        figure.subplots_adjust(left=0.19, right=0.95, bottom=0.2, top=0.9)
        axes = figure.add_subplot()
        left = np.concatenate([[Z_EDGES[0] - step], Z_EDGES])
        colors = [RIGHT] * len(counts)
        colors[0] = colors[-1] = WRONG
        axes.bar(left, counts, width=step, align="edge", color=colors, linewidth=0)
        middle = Z_EDGES[:-1] + step / 2
        expected = counts.sum() * step * np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi)
        seen = expected >= 0.5  # elements: below that the curve says nothing of this many
        axes.plot(middle[seen], expected[seen], color=INK, linewidth=1.4, label="normal")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlim(left[0], left[-1] + step)
        axes.set_xticks([-12, -8, -4, 0, 4, 8, 12], ["≤ -12", "-8", "-4", "0", "4", "8", "≥ 12"])
        _count_axis(axes, int(max(counts.max(), expected.max())))
        axes.set_xlabel("z = (out - ref) / sigma")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right", bbox_to_anchor=(1.0, 1.16))
        return svg_markup(figure, "histogram of z against the normal curve")


def _label(axes: Axes, most: int) -> None:
    ticks = [1e-4, 1e-2, 1, 1e2, 1e4]
    axes.set_xticks(ticks, ["≤ 0.0001", "0.01", "1", "100", "≥ 10000"])
    axes.minorticks_off()
    _count_axis(axes, most)
    axes.set_xlabel("|out - ref| / allowed")


def _count_axis(axes: Axes, most: int) -> None:
    powers = [10**power for power in range(0, len(str(most)) + 1, max(1, len(str(most)) // 4))]
    axes.set_yticks([0, *powers], ["0", *(f"{power:,}" for power in powers)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, most * 3 + 1)
    axes.set_ylabel("elements")


def svg_markup(figure: Figure, title: str) -> Markup:
    """The bare <svg> element: no XML header, no metadata, no addresses."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
