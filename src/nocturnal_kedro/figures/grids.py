"""Error grids with the share of points in each zone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import require_known
from nocturnal_kedro.figures import GREY, MODEL_COLOURS, finish, tint
from nocturnal_kedro.metrics.clinical import GRIDS, ZONES, ErrorGrid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOP = 420  # where the drawing ends in mg/dL; points beyond are drawn on the edge
LARGEST_SAMPLE = 4000
# Where in each grid a zone's letter has room: zone, reference, forecast in mg/dL.
LETTERS = {
    "clarke": (
        ("A", 340, 345), ("B", 290, 385), ("B", 300, 205), ("C", 130, 330), ("C", 160, 18),
        ("D", 30, 125), ("D", 340, 125), ("E", 30, 300), ("E", 300, 35),
    ),
    "parkes": (
        ("A", 340, 345), ("B", 240, 360), ("B", 350, 210), ("C", 135, 330), ("C", 230, 55),
        ("D", 68, 330), ("D", 370, 40), ("E", 18, 330),
    ),
    "dts": (
        ("A", 340, 345), ("B", 250, 365), ("B", 350, 225), ("C", 155, 325), ("C", 350, 145),
        ("D", 116, 330), ("D", 380, 101), ("E", 35, 330), ("E", 340, 30),
    ),
}  # fmt: skip


def error_grid(forecasts: dict[str, pd.DataFrame], grid: str = "clarke") -> Figure:
    """One of GRIDS per model, side by side; at most 4,000 points are drawn, all are counted."""
    from plotly.subplots import make_subplots

    judge = GRIDS[require_known("error grid", grid, GRIDS)]
    points = {model: frame.dropna(subset=["target_mg_dl"]) for model, frame in forecasts.items()}
    titles = [
        f"{model}<br><span style='font-size:11px'>{_shares(judge, frame)}</span>"
        for model, frame in points.items()
    ]
    figure = make_subplots(
        rows=1,
        cols=len(points),
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    for column, frame in enumerate(points.values(), start=1):
        place = {"row": 1, "col": column}
        drawn = frame.sample(min(len(frame), LARGEST_SAMPLE), random_state=0)
        figure.add_scattergl(
            x=drawn["target_mg_dl"].clip(0, TOP),
            y=drawn["forecast_mg_dl"].clip(0, TOP),
            mode="markers",
            marker={"size": 3, "color": tint(MODEL_COLOURS[5], 0.5)},
            hoverinfo="skip",
            **place,
        )
        for line in judge.lines:
            x, y = np.array(line).T
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": GREY, "width": 1.2},
                hoverinfo="skip",
                **place,
            )
        for zone, x, y in LETTERS[grid]:
            figure.add_annotation(x=x, y=y, text=f"<b>{zone}</b>", showarrow=False, **place)
    figure.update_xaxes(range=[0, TOP], title="truth, mg/dL")
    figure.update_yaxes(range=[0, TOP])
    figure.update_yaxes(title="forecast, mg/dL", col=1)
    return finish(figure, height=470).update_layout(showlegend=False, margin={"t": 70})


def _shares(grid: ErrorGrid, frame: pd.DataFrame) -> str:
    zones = grid.zones(frame["target_mg_dl"].to_numpy(), frame["forecast_mg_dl"].to_numpy())
    return ", ".join(f"{zone} {100 * np.mean(zones == zone):.1f} %" for zone in ZONES)
