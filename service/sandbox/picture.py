"""The demo's curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

from service.sandbox.scoreboard import Curve, Recommender
from service.sandbox.view import NAMES

_COLOURS = {
    Recommender.LIVE: "#0a7d43",
    Recommender.FROZEN: "#c2410c",
    Recommender.POPULARITY: "#6b7280",
    Recommender.FROZEN_AT_HALF: "#1d4ed8",
}


def draw(curve: Curve, published: Sequence[int], half: int, window: int, file: Path) -> None:
    """`published`: the events at which versions took over; `half`: where the last half starts.

    Loads matplotlib: a second, and some more the first time ever.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(10, 8), sharex=True)
    for axes, values, label in (
        (upper, curve.ndcg_at_10, "NDCG@10"),
        (lower, curve.hr_at_10, "HR@10"),
    ):
        for who, points in values.items():
            axes.plot(curve.event, points, color=_COLOURS[who], label=NAMES[who])
        axes.axvline(half, color="#9ca3af", linestyle=":", linewidth=1)
        axes.set_ylabel(f"{label}, last {window:,} queries")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    upper.plot(published, [0.0] * len(published), "|", color=_COLOURS[Recommender.LIVE], alpha=0.5)
    upper.set_title("Every event is a query before anything learns from it (MovieLens-100K)")
    upper.legend(loc="lower center", ncols=2, frameon=False)
    lower.set_xlabel(
        f"events of the stream; dotted: the last half begins; ticks: {len(published)} versions"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
