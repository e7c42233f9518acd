"""One function per figure: frames in, a plotly Figure out; what is common to all stands here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nocturnal_kedro.series.schema import STEPS_PER_HOUR

if TYPE_CHECKING:  # plotly costs seconds: figures import it when they are drawn
    from plotly.graph_objects import Figure

# Okabe & Ito: told apart by colour-blind readers; baselines are grey and dashed.
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
GREY = "#8a8a8a"
SPLIT_TITLES = {"patient": "People never seen", "temporal": "Everybody else, later days"}


@dataclass(frozen=True)
class Section:
    """A figure of a report with what it shows in words."""

    title: str
    caption: str
    figure: Figure


def line_styles(models: Iterable[str], baselines: Iterable[str]) -> dict[str, dict[str, object]]:
    """The line of every name, the same in every figure."""
    styles: dict[str, dict[str, object]] = {
        model: {"color": MODEL_COLOURS[number % len(MODEL_COLOURS)], "width": 2.5}
        for number, model in enumerate(models)
    }
    for number, baseline in enumerate(baselines):
        dash = BASELINE_DASHES[number % len(BASELINE_DASHES)]
        styles[baseline] = {"color": GREY, "width": 1.5, "dash": dash}
    return styles


def panels(splits: Iterable[str]) -> tuple[Figure, list[str]]:
    """Room for a panel of each test split that is there, on one scale; and which these are."""
    from plotly.subplots import make_subplots

    there = set(splits)
    shown = [split for split in SPLIT_TITLES if split in there]
    figure = make_subplots(
        rows=1,
        cols=len(shown),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[SPLIT_TITLES[split] for split in shown],
    )
    return figure, shown


def finish(figure: Figure, height: int) -> Figure:
    """The common look: no background, so that the page decides between light and dark."""
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 16, "t": 48, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 13},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0},
        hoverlabel={"font": {"size": 12}},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False)
    return figure


def steps_axis(steps: int, from_midnight: bool) -> dict[str, object]:
    """An axis of steps: clock times from midnight, or hours after any other origin."""
    hours = steps // STEPS_PER_HOUR
    marks = list(range(0, hours + 1, 2 if hours > 4 else 1))
    return {
        "tickvals": [float(mark * STEPS_PER_HOUR) for mark in marks],
        "ticktext": [f"{mark:02d}:00" if from_midnight else str(mark) for mark in marks],
        "title": "clock time" if from_midnight else "hours after the origin",
    }


def tint(colour: str, opacity: float) -> str:
    """A hexadecimal colour as rgba."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
