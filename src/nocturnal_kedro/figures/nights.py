"""Forecasts of chosen nights over what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import finish, steps_axis, tint
from nocturnal_kedro.series.schema import TEST_SPLITS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NIGHT = ["source", "subject", "origin"]
BANDS = (("q0.05", "q0.95", 0.15), ("q0.25", "q0.75", 0.3))  # lower, upper, opacity
CHOSEN = {"an easy": 0.1, "a usual": 0.5, "a hard": 0.9}


def choose_nights(
    forecasts: pd.DataFrame, origins: pd.DataFrame, unit: str = "night"
) -> pd.DataFrame:
    """Per test split: the nights at the 10th, 50th and 90th percentile of this model's error, and
    the one with the lowest reading. Columns split, why, source, subject, origin.

    `unit` is what an origin is of: see `Task.unit`.
    """
    squared = (forecasts["forecast_mg_dl"] - forecasts["target_mg_dl"]) ** 2
    nights = (
        forecasts.assign(error=squared)
        .groupby(NIGHT)
        .agg(error=("error", "mean"), lowest=("target_mg_dl", "min"))
        .reset_index()
        .merge(origins, on=NIGHT)
    )
    rows = []
    for split in TEST_SPLITS:
        ranked = nights[nights["split"] == split].sort_values("error")
        if ranked.empty:
            continue
        for why, share in CHOSEN.items():
            rows.append(
                ranked.iloc[round(share * (len(ranked) - 1))].to_dict() | {"why": f"{why} {unit}"}
            )
        rows.append(ranked.loc[ranked["lowest"].idxmin()].to_dict() | {"why": f"the lowest {unit}"})
    return pd.DataFrame(rows)[["split", "why", *NIGHT]]


def sample_nights(
    forecasts: dict[str, pd.DataFrame],
    chosen: pd.DataFrame,
    styles: dict[str, dict[str, object]],
) -> Figure:
    """Small multiples: truth as dots, each model as a line, 50 and 90 % bands where it has them."""
    from plotly.subplots import make_subplots

    columns = 2
    from_midnight = bool((chosen["origin"] == chosen["origin"].dt.normalize()).all())
    rows = -(-len(chosen) // columns)
    titles = [
        f"{night.why}, {night.split}<br><sup>{night.source}/{night.subject}, "
        f"{night.origin:{'%Y-%m-%d' if from_midnight else '%Y-%m-%d %H:%M'}}</sup>"
        for night in chosen.itertuples()
    ]
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes=True,
        horizontal_spacing=0.08,
        vertical_spacing=0.32 / rows,
        subplot_titles=titles,
    )
    by_night = {model: frame.set_index(NIGHT).sort_index() for model, frame in forecasts.items()}
    for number, night in enumerate(chosen.itertuples()):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        key = (night.source, night.subject, night.origin)
        first = number == 0
        for model, frame in by_night.items():
            _draw_model(figure, frame.loc[[key]], model, styles[model], first, place)
        truth = next(iter(by_night.values())).loc[[key]]
        figure.add_scatter(
            x=truth["step"],
            y=truth["target_mg_dl"],
            name="truth",
            legendgroup="truth",
            showlegend=first,
            mode="markers",
            marker={"size": 4, "color": "#808080"},
            **place,
        )
    figure.add_hrect(y0=70, y1=180, fillcolor="rgba(0,158,115,0.08)", line_width=0)
    figure.add_hline(y=54, line={"color": "#D55E00", "width": 1, "dash": "dot"})
    last = max(int(frame["step"].max()) for frame in forecasts.values())
    figure.update_xaxes(**steps_axis(last, from_midnight) | {"title": None})
    figure.update_yaxes(title="mg/dL", col=1)
    figure = finish(figure, height=110 + 250 * rows)
    return figure.update_layout(legend={"y": -0.5 / rows / 2})


def _draw_model(
    figure: Figure,
    night: pd.DataFrame,
    model: str,
    line: dict[str, object],
    first: bool,
    place: dict[str, int],
) -> None:
    for low, high, opacity in BANDS:
        if low not in night:
            continue
        figure.add_scatter(
            x=[*night["step"], *night["step"][::-1]],
            y=[*night[low], *night[high][::-1]],
            fill="toself",
            fillcolor=tint(str(line["color"]), opacity),
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=model,
            showlegend=False,
            **place,
        )
    figure.add_scatter(
        x=night["step"],
        y=night["forecast_mg_dl"],
        name=model,
        legendgroup=model,
        showlegend=first,
        mode="lines",
        line=line,
        **place,
    )
