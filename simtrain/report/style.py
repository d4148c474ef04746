"""One style for all pictures: colours that stand for the same thing everywhere, files that are equal when their content is.

Systems take the muted scheme of Tol, what a rank does takes the colours of Okabe and Ito. Both can be told apart
under the common kinds of colour blindness.

References
----------
.. [1] Okabe and Ito, "Color Universal Design", 2008.
.. [2] Tol, "Colour Schemes", SRON/EPS/TN/09-002, 2021.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtrain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

_MUTED = ("#332288", "#44AA99", "#CC6677", "#117733", "#AA4499", "#88CCEE", "#882255", "#DDCC77", "#999933", "#6699CC")
_BASELINE = "#9AA3AE"

SYSTEMS: dict[str, str] = {
    "dense/megatron_lm": _BASELINE,
    "dense/megascale": _MUTED[0],
    "resilience/synchronous_restart": "#5F6B7A",
    "resilience/llama3": _MUTED[9],
    "resilience/byterobust": _MUTED[4],
    "resilience/torchft": _MUTED[7],
    "resilience/recycle": _MUTED[8],
    "resilience/elaswave": _MUTED[6],
    "long_context/ring_self_attention": _MUTED[3],
    "long_context/ulysses": _MUTED[1],
    "scheduling/fifo": _BASELINE,
    "scheduling/fifo_skip": _MUTED[7],
    "scheduling/easy": _MUTED[0],
    "scheduling/conservative": _MUTED[5],
    "scheduling/sjf": _MUTED[1],
    "scheduling/srtf": _MUTED[3],
    "scheduling/tiresias": _MUTED[2],
    "scheduling/priority_guard": _MUTED[4],
    "scheduling/consolidated": _MUTED[8],
    "rl/verl": "#BBBBBB",
    "rl/areal": _MUTED[6],
    "rl/areal_sync": _MUTED[7],
    "rl/one_step_off_policy": _MUTED[9],
    "moe/deepspeed_moe": _BASELINE,
    "moe/tutel": _MUTED[5],
    "moe/pipemoe_lina": _MUTED[7],
    "moe/fsmoe": _MUTED[2],
}
"""Colours of shipped systems. One that is not listed takes a place in the palette by its name."""

CATEGORIES = {
    "forward": "#56B4E9", "backward": "#0072B2", "recompute": "#7A5195", "update": "#3B3B3B", "compute": "#2D8CC4",
    "tp": "#E69F00", "cp": "#F0E442", "ep": "#CC79A7", "pp": "#009E73", "dp": "#D55E00",
    "host": "#A6845C", "idle": "#E9ECEF",
    "productive": "#0072B2", "checkpoint": "#56B4E9", "degraded": "#F0E442", "lost_work": "#D55E00", "detection": "#CC79A7", "restart": "#E69F00",
    "waiting": "#A6845C",
    "decode": "#56B4E9", "prefill": "#009E73", "reprefill": "#F0E442", "log_probs": "#7A5195", "train": "#0072B2", "weight_sync": "#D55E00",
    "reshard": "#CC79A7",
}  # fmt: skip
"""Colours of what a rank does, and of what a run with failures does."""

MEMORY = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#A6845C", "#F0E442", "#999933")
"""Colours of the parts of memory, in the order of the parts."""

INK = "#1F2933"
QUIET = "#66707C"
ALARM = "#B3261E"
PAPER = "#FFFFFF"

LEGEND = 0.66
"""Height above a panel for its title and two lines of legend. [in]"""

_SETTINGS: dict[Any, Any] = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "figure.dpi": 100, "savefig.dpi": 150,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"], "font.size": 9.5,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": INK, "axes.titlepad": 10,
    "axes.edgecolor": "#C5CBD3", "axes.labelcolor": QUIET, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.grid": False, "grid.color": "#E4E7EB", "grid.linewidth": 0.8, "text.color": INK, "xtick.color": "#C5CBD3", "ytick.color": "#C5CBD3",
    "xtick.labelcolor": INK, "ytick.labelcolor": QUIET, "legend.frameon": False, "legend.fontsize": 9, "hatch.linewidth": 0.6,
    "svg.fonttype": "none", "svg.hashsalt": "simtrain", "svg.image_inline": True,
}  # fmt: skip


@contextmanager
def styled() -> Generator[None]:
    """Draw and save in the house style, whatever the user's own matplotlib settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def save(figure: Figure, path: str) -> None:
    """Write a figure as SVG or PNG; equal figures give equal files.

    Raises
    ------
    InputError
        If the path ends in neither.
    """
    metadata = {".svg": {"Date": None, "Creator": "simtrain"}, ".png": {"Software": "simtrain"}}
    ending = Path(path).suffix.lower()
    if ending not in metadata:
        raise InputError(f"--plot {path}: a picture ends in .svg or .png")
    figure.savefig(path, format=ending[1:], metadata=metadata[ending])


def system_colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each system. Only systems that are not listed and meet in one picture may have to give way.

    Examples
    --------
    >>> system_colours(["dense/megatron_lm", "dense/megascale"])
    {'dense/megatron_lm': '#9AA3AE', 'dense/megascale': '#332288'}
    """
    listed = list(dict.fromkeys(names))
    colours = {name: SYSTEMS[name] for name in listed if name in SYSTEMS}
    for name in sorted(set(listed) - set(colours)):
        slot = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % len(_MUTED)
        ordered = [*_MUTED[slot:], *_MUTED[:slot]]
        colours[name] = next((c for c in ordered if c not in colours.values()), ordered[0])
    return {name: colours[name] for name in listed}


def header(figure: Figure, title: str, notes: Iterable[str]) -> None:
    """Write title and subtitle into the top left corner."""
    height = figure.get_figheight()
    x = 0.2 / figure.get_figwidth()
    figure.text(x, 1 - 0.16 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(x, 1 - 0.46 / height, "  |  ".join(note for note in notes if note), fontsize=9.5, color=QUIET, va="top")


def patch(colour: str, label: str) -> Patch:
    """Return a square for a legend; one that is nearly white gets an edge."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor="#B8C0C9" if colour == CATEGORIES["idle"] else "none", linewidth=0.6, label=label)


def legend(ax: Axes, handles: Sequence[Patch | Line2D]) -> int:
    """Put a legend between title and panel, in as many columns as fit, and return its number of lines."""
    columns = _columns([str(handle.get_label()) for handle in handles], inches(ax)[0])
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=7.5, borderpad=0.1, borderaxespad=0.15, handlelength=0.9,
        handleheight=0.9, handletextpad=0.4, columnspacing=0.9, labelspacing=0.25,
    )  # fmt: skip
    return -(-len(handles) // columns)


def raise_titles(axes: Sequence[Axes], lines: Sequence[int]) -> None:
    """Lift the titles of panels that stand beside each other over the tallest of their legends."""
    bottoms = [round(ax.get_position().y0, 6) for ax in axes]
    for ax, bottom in zip(axes, bottoms, strict=True):
        tallest = max(count for count, other in zip(lines, bottoms, strict=True) if other == bottom)
        ax.set_title(ax.get_title(loc="left"), y=1 + (0.13 + 0.145 * tallest) / inches(ax)[1], pad=0)


def _columns(labels: Sequence[str], width: float) -> int:
    """Return the most columns in which labels fit into a width, filled column by column. [in]"""
    # At 7.5 points a letter is 0.06 in wide on average; square and gaps take 0.28 in.
    own = [len(label) * 0.06 + 0.28 for label in labels]
    for count in range(len(own), 1, -1):
        lines = -(-len(own) // count)
        if sum(max(own[i : i + lines]) for i in range(0, len(own), lines)) <= width:
            return count
    return 1


def plain_log(ax: Axes, *, is_x: bool, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Make an axis logarithmic, with ticks at ``subs`` times the powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (ax.set_xscale if is_x else ax.set_yscale)("log")
    axis = ax.xaxis if is_x else ax.yaxis
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def inches(ax: Axes) -> tuple[float, float]:
    """Return width and height of a panel. [in]"""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box, (width, height) = ax.get_position(), figure.get_size_inches()
    return box.width * width, box.height * height


def ink_on(category: str) -> str:
    """Return a colour of text that can be read on a category's."""
    red, green, blue = (int(CATEGORIES[category][i : i + 2], 16) for i in (1, 3, 5))
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 145 else INK
