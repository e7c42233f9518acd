"""After a meal: errors by its size, and the mean course of glucose."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import require_known
from nocturnal_kedro.figures import GREY, SPLIT_TITLES, finish, panels
from nocturnal_kedro.metrics.meals import ALL, HEADLINES, MEAL_SIZES, UNKNOWN

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SIZES = (ALL, *MEAL_SIZES, UNKNOWN)
TITLES = {
    "rmse": "RMSE, mg/dL (mean over people)",
    "peak_mae": "error of the peak, mg/dL",
    "peak_bias": "forecast peak minus peak, mg/dL",
    "peak_time_mae": "error of the time to peak, min",
    "peak_time_bias": "forecast minus real time to peak, min",
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
FEWEST_PEOPLE = 3  # a mean course of fewer shows somebody's own


def error_by_meal_size(
    judged: pd.DataFrame, styles: dict[str, dict[str, object]], measure: str = "rmse"
) -> Figure:
    """One of `metrics.meals.HEADLINES` by the size of the meal; a panel per split.

    Each person counts once; bars are 95 % intervals over people, absent where these are too few.
    """
    unit = HEADLINES[require_known("measure of a meal", measure, HEADLINES)]
    names = [f"{measure}{end}_{unit}" for end in ("", "_low", "_high")]
    sizes = [size for size in SIZES if (judged["meal_size"] == size).any()]
    aside = np.linspace(-0.3, 0.3, len(styles)) if len(styles) > 1 else [0.0]
    figure, splits = panels(judged["split"])
    for column, split in enumerate(splits, start=1):
        of_split = judged[judged["split"] == split]
        for number, (model, offset) in enumerate(zip(styles, aside, strict=True)):
            of_model = of_split[of_split["model"] == model].set_index("meal_size")
            rows = of_model.reindex(sizes).reset_index()
            error, low, high = (rows[name] for name in names)
            figure.add_scatter(
                x=np.arange(len(sizes)) + offset,
                y=error,
                error_y={
                    "array": high - error,
                    "arrayminus": error - low,
                    "width": 0,
                    "thickness": 1.5,
                },
                customdata=rows[["people", "meals"]],
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="markers",
                marker={
                    "size": 9,
                    "color": styles[model]["color"],
                    "symbol": SYMBOLS[number % len(SYMBOLS)],
                },
                hovertemplate="%{y:.1f}: %{customdata[1]} meals of %{customdata[0]} people",
                row=1,
                col=column,
            )
    figure.update_xaxes(
        tickvals=list(range(len(sizes))),
        ticktext=[_of_size(size) for size in sizes],
        title="carbs of the meal",
        range=[-0.5, len(sizes) - 0.5],
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title=TITLES[measure], col=1)
    return finish(figure, height=440)


def courses_after_meals(courses: pd.DataFrame, styles: dict[str, dict[str, object]]) -> Figure:
    """Mean change of glucose since the origin: what came as dots, forecasts as lines.

    `courses` as of `metrics.meals.mean_courses`, with a column model. A row per split, a column per
    size of the meal; each person counts once, and steps of fewer than three people are left out.
    """
    from plotly.subplots import make_subplots

    shown = courses["split"].isin(SPLIT_TITLES) & courses["model"].isin(styles)
    enough = courses[shown & (courses["people"] >= FEWEST_PEOPLE)]
    sizes = [size for size in SIZES if (enough["meal_size"] == size).any()]
    splits = [split for split in SPLIT_TITLES if (enough["split"] == split).any()]
    if enough.empty:
        figure = make_subplots()
        figure.add_annotation(
            text=f"No mean course: under {FEWEST_PEOPLE} people have a meal.", showarrow=False
        )
        return finish(figure, height=200)
    figure = make_subplots(
        rows=len(splits),
        cols=len(sizes),
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.02,
        vertical_spacing=0.08,
        column_titles=[_of_size(size) for size in sizes],
        row_titles=[SPLIT_TITLES[split] for split in splits],
    )
    in_legend: set[str] = set()
    for row, column in product(range(len(splits)), range(len(sizes))):
        place = {"row": row + 1, "col": column + 1}
        here = (enough["split"] == splits[row]) & (enough["meal_size"] == sizes[column])
        of_models = dict(list(enough[here].groupby("model")))
        for number, model in enumerate(name for name in styles if name in of_models):
            course = of_models[model]
            if number == 0:  # what came is the same for all
                figure.add_scatter(
                    x=course["minutes"],
                    y=course["change_mg_dl"],
                    customdata=course[["people", "meals"]],
                    name="truth",
                    legendgroup="truth",
                    showlegend="truth" not in in_legend,
                    mode="markers",
                    marker={"size": 4, "color": GREY},
                    hovertemplate="%{x} min: %{y:+.0f} mg/dL, "
                    "%{customdata[1]} meals of %{customdata[0]} people",
                    **place,
                )
            figure.add_scatter(
                x=course["minutes"],
                y=course["forecast_change_mg_dl"],
                name=model,
                legendgroup=model,
                showlegend=model not in in_legend,
                mode="lines",
                line=styles[model],
                hovertemplate="%{x} min: %{y:+.0f} mg/dL",
                **place,
            )
            in_legend |= {"truth", model}
    changes = enough[["change_mg_dl", "forecast_change_mg_dl"]].to_numpy()
    lowest, highest = changes.min(), changes.max()
    aside = 0.05 * (highest - lowest)
    last = int(enough["minutes"].max())
    figure.update_xaxes(tickvals=list(range(0, last + 1, 60)), range=[0, last + 5])
    figure.update_xaxes(title="minutes", row=len(splits))
    figure.update_yaxes(range=[lowest - aside, highest + aside])
    figure.update_yaxes(title="change, mg/dL", col=1)
    figure = finish(figure, height=110 + 250 * len(splits))
    return figure.update_layout(legend={"y": -0.5 / len(splits) / 2}, margin={"r": 40})


def _of_size(size: str) -> str:
    return f"{size} meals" if size == ALL else size
