"""One style for all figures, and the ways out: inline SVG for the page, files of their own.

Only Matplotlib's objects are used, never pyplot, whose state is global. The same input gives the same bytes: ids are
salted with the figure's name, and no date or version is written.

Colours: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/; maps in viridis and cividis,
weights, which have a sign, in purple and orange.
"""

import base64
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

BLACK, GREY = "#1a1a1a", "#8a8a8a"
BLUE, SKY, ORANGE, GREEN, VERMILLION, PINK, YELLOW = (
    "#0072B2",
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#C9B400",  # Okabe and Ito's yellow, darkened to show as a thin line on white
)
CYCLE = (BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, YELLOW, BLACK)
WIDTH = 8.4
"""Inches, of every figure; the page shows them as wide as its text."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica Neue", "Arial"],  # the first, which Matplotlib ships, is measured
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#333333",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE),
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a name may hold a dollar sign
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw and write one figure inside this: our style, and ids that depend on the figure's name alone."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's own matplotlibrc says
        mpl.rcParams.update(_STYLE)
        mpl.rcParams["svg.hashsalt"] = name
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in scripts that the font has not
        yield


def grid(rows: int, columns: int, *, height: float, empty: int = 0, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, row by row; the last `empty` of them are left out."""
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for panel in panels[len(panels) - empty :]:
        panel.remove()
    return figure, panels[: len(panels) - empty]


def counts_axis(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as numbers: 1,000 and not a power of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def dot(
    panel: Axes,
    place: int | float,
    estimate: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    color: str = BLACK,
    marker: str = "o",
    label: str | None = None,
    filled: bool = True,
) -> None:
    """One estimate as a dot with its interval as a line, in the row `place`; nothing where there is no estimate."""
    if estimate is None:
        return
    if low is not None and high is not None:
        panel.hlines(place, low, high, color=color, linewidth=1.6)
    face = color if filled or marker == "|" else "white"
    size, edge = (11, 1.8) if marker == "|" else (5.5, 1.2)
    panel.plot(
        [estimate], [place], marker, color=color, markerfacecolor=face, markersize=size, markeredgewidth=edge,
        label=label, linestyle="none",
    )  # fmt: skip


def name_rows(panel: Axes, names: Sequence[str]) -> None:
    """Rows from the top down, one a name, with a light line through each."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(max(1, len(names)) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y")


def thin_lines(panel: Axes, frame: pl.DataFrame, x: str, y: str, color: str) -> None:
    """One thin curve a sample, as pixels, so that a thousand of them cost no more than ten."""
    curves = frame.select("sample", pl.col(x, y).cast(pl.Float64)).partition_by("sample", maintain_order=True)
    lines = [curve.select(x, y).to_numpy() for curve in curves]
    panel.add_collection(LineCollection(lines, colors=color, linewidths=0.6, alpha=0.45, rasterized=True))
    panel.autoscale_view()


def legend_below(figure: Figure, panel: Axes, columns: int) -> None:
    """The panel's legend, each label once, under the whole figure."""
    handles, labels = panel.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(list(once.values()), list(once), loc="outside lower center", ncols=min(columns, len(once)))


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for a page: scaled by its box, ids unlike those of any other figure."""
    figure.draw_without_rendering()  # lays the panels out; once is enough, and takes half of the time
    figure.set_layout_engine("none")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_DATES["svg"])
    text = buffer.getvalue()
    # Its style is for all elements (`*`): on a page it would reach beyond the figure, so the page says it itself.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"(?<=base64,)[^\"]+", lambda image: _fewer_bytes(re.sub(r"\s", "", image[0])), text)
    text = re.sub(r' id="image\w+"', "", text)  # of its content: the same picture twice would have one id twice
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    head = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>')
    return head.sub(rf'<svg viewBox="\1" role="img" aria-label="{description}">', text, count=1).strip()


def _fewer_bytes(image: str) -> str:
    """A PNG in base64 of at most 256 opaque colours, as a map has, with a palette instead: a third of the bytes."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGBA"))
    colors, places = np.unique(np.ascontiguousarray(pixels).view(np.uint32), return_inverse=True)  # a pixel a number
    palette = colors.view(np.uint8).reshape(-1, 4)
    if len(colors) > 256 or (palette[:, 3] < 255).any():
        return image
    small = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
    small.putpalette(palette[:, :3].tobytes())
    buffer = io.BytesIO()
    small.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def write(figure: Figure, path: Path, form: str) -> None:
    """The figure as a file of its own."""
    figure.savefig(path, format=form, dpi=200, metadata=_NO_DATES[form])


_NO_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
