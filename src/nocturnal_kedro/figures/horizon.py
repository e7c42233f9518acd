"""How the error grows through the night."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import finish, panels, steps_axis
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.scores import pool
from nocturnal_kedro.series.schema import STEPS_PER_HOUR

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def error_by_horizon(scores: pd.DataFrame, styles: dict[str, dict[str, object]]) -> Figure:
    """RMSE per step: mean over people of sqrt(mse), so that each counts once; a panel per split."""
    return _by_step(scores, "rmse_mg_dl", styles, "RMSE, mg/dL (mean over people)")


def bias_by_horizon(scores: pd.DataFrame, styles: dict[str, dict[str, object]]) -> Figure:
    """Bias per step, each person counting once; above 0 the forecast is too high."""
    return _by_step(scores, "bias_mg_dl", styles, "Bias, mg/dL (forecast minus truth)")


def _by_step(
    scores: pd.DataFrame, measure: str, styles: dict[str, dict[str, object]], title: str
) -> Figure:
    people = pool(scores, ["split", "model", *PERSON, "step"])  # cells may be finer
    curves = people.groupby(["split", "model", "step"])[measure].mean()
    figure, splits = panels(scores["split"])
    for column, split in enumerate(splits, start=1):
        for model, line in styles.items():
            curve = curves[split, model]
            figure.add_scatter(
                x=curve.index,
                y=curve,
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="lines",
                line=line,
                hovertemplate="step %{x}: %{y:.1f} mg/dL",
                row=1,
                col=column,
            )
    hour_from_midnight = (scores["step"] - 1) // STEPS_PER_HOUR % 24
    from_midnight = bool((scores["hour"] == hour_from_midnight).all())
    figure.update_xaxes(**steps_axis(int(scores["step"].max()), from_midnight))
    figure.update_yaxes(title=title, col=1)
    return finish(figure, height=440)
