"""The plot of sizes.py."""

from pathlib import Path
from typing import Any

# Each has a contrast of at least 3 to white and to black, as pages are light or dark.
TEXT, GRID = "#808080", "#80808040"
# The Wong palette's hues, darker or lighter until they have that contrast.
COLOURS = ("#808080", "#2f81f7", "#c2720c", "#1a9d6c", "#b665c4", "#d1495b", "#a08400", "#0e93a8")
MARKERS = "osD^vPX*"


def draw(times: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw time, and its ratio to np.copyto, against size.

    Parameters
    ----------
    times : dict
        Of each name, pairs of elements and seconds; np.copyto first.
    path : Path
        The suffix is that of the format.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    style = {
        "axes.edgecolor": TEXT,
        "axes.labelcolor": TEXT,
        "axes.titlecolor": TEXT,
        "font.size": 11,
        "svg.hashsalt": "quantarray",  # the same figures give the same file
        "text.color": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
    }
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.2))
        base = dict(next(iter(times.values())))
        for number, (name, pairs) in enumerate(times.items()):
            peer = not name.startswith(("quantize", "dequantize", "np."))
            look: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": "--" if peer else "-",
                "linewidth": 1.8,
                "marker": MARKERS[number % len(MARKERS)],
                "markersize": 5,
            }
            sizes = [size for size, _ in pairs]
            left.plot(sizes, [1e3 * s for _, s in pairs], label=name, **look)
            right.plot(sizes, [s / base[size] for size, s in pairs], **look)
        sizes, (largest, seconds) = list(base), max(base.items())
        line = [1e3 * seconds * size / largest for size in sizes]
        left.plot(sizes, line, color=TEXT, linestyle=":", label="proportional to size")
        left.set(title="time of a call", ylabel="ms")
        right.set(title="ratio to np.copyto of the same array", ylabel="times as long")
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlabel="float32 elements")
            axes.grid(color=GRID)
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
        right.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_major_formatter("{x:g}")
        figure.legend(loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.12, 1, 1))
        date = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, metadata=date, dpi=150)
        plt.close(figure)
