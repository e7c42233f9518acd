"""The Clarke error grid with the share of points in each zone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nocturnal_kedro.figures import finish
from nocturnal_kedro.metrics.clinical import ZONES, clarke_zones

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Where the drawing ends in mg/dL; points beyond are drawn on the edge and scored where they are.
TOP = 420
# Polylines of the zone boundaries, clipped to the drawing (Clarke et al. 1987).
BOUNDARIES = (
    ((0, 70), (58.33, 70), (TOP / 1.2, TOP)),  # upper edge of A
    ((70, 0), (70, 56), (TOP, 0.8 * TOP)),  # lower edge of A
    ((70, 84), (70, 180)),
    ((0, 180), (70, 180), (70, TOP)),  # D and E, and C from B, upper left
    ((70, 180), (TOP - 110, TOP)),
    ((130, 0), (180, 70)),  # lower C
    ((180, 0), (180, 70), (TOP, 70)),  # lower E
    ((240, 70), (240, 180), (TOP, 180)),  # right D
)
LABELS = (
    ("A", 330, 350),
    ("B", 300, 385),
    ("B", 300, 205),
    ("C", 130, 330),
    ("C", 160, 20),
    ("D", 30, 125),
    ("D", 340, 125),
    ("E", 30, 300),
    ("E", 300, 35),
)
LARGEST_SAMPLE = 4000


def clarke_grid(forecasts: dict[str, pd.DataFrame]) -> Figure:
    """A grid per model, side by side; at most 4,000 points are drawn, all are counted."""
    from plotly.subplots import make_subplots

    points = {model: frame.dropna(subset=["target_mg_dl"]) for model, frame in forecasts.items()}
    titles = [f"{model}<br><sup>{_shares(frame)}</sup>" for model, frame in points.items()]
    figure = make_subplots(rows=1, cols=len(points), subplot_titles=titles, shared_yaxes=True)
    for column, frame in enumerate(points.values(), start=1):
        drawn = frame.sample(min(len(frame), LARGEST_SAMPLE), random_state=0)
        figure.add_scattergl(
            x=drawn["target_mg_dl"].clip(upper=TOP),
            y=drawn["forecast_mg_dl"].clip(0, TOP),
            mode="markers",
            marker={"size": 3, "color": "rgba(0,114,178,0.25)"},
            hoverinfo="skip",
            row=1,
            col=column,
        )
        for line in BOUNDARIES:
            x, y = np.array(line).T
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": "#808080", "width": 1.2},
                hoverinfo="skip",
                row=1,
                col=column,
            )
        for zone, x, y in LABELS:
            figure.add_annotation(
                x=x, y=y, text=f"<b>{zone}</b>", showarrow=False, row=1, col=column
            )
    figure.update_xaxes(range=[0, TOP], title="truth, mg/dL")
    figure.update_yaxes(range=[0, TOP])
    figure.update_yaxes(title="forecast, mg/dL", col=1)
    return finish(figure, height=470).update_layout(showlegend=False, margin={"t": 70})


def _shares(frame: pd.DataFrame) -> str:
    zones = clarke_zones(frame["target_mg_dl"].to_numpy(), frame["forecast_mg_dl"].to_numpy())
    return ", ".join(f"{zone} {100 * np.mean(zones == zone):.1f} %" for zone in ZONES)
