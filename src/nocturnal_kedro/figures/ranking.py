"""The leaderboard as dots with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import GREY, SPLIT_TITLES, finish

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def rmse_intervals(leaderboard: pd.DataFrame, styles: dict[str, dict[str, object]]) -> Figure:
    """Subject-macro RMSE of every model and its 95 % interval, a panel per split."""
    from plotly.subplots import make_subplots

    splits = list(leaderboard["split"].unique())
    figure = make_subplots(
        rows=1,
        cols=len(splits),
        shared_xaxes="all",
        horizontal_spacing=0.2,
        subplot_titles=[SPLIT_TITLES.get(split, split) for split in splits],
    )
    for column, split in enumerate(splits, start=1):
        table = leaderboard[leaderboard["split"] == split].iloc[::-1]
        figure.add_scatter(
            x=table["rmse_mg_dl"],
            y=table["model"],
            error_x={
                "array": table["rmse_high_mg_dl"] - table["rmse_mg_dl"],
                "arrayminus": table["rmse_mg_dl"] - table["rmse_low_mg_dl"],
                "color": GREY,
                "thickness": 1.5,
            },
            mode="markers",
            marker={"size": 10, "color": [styles[model]["color"] for model in table["model"]]},
            showlegend=False,
            hovertemplate="%{y}: %{x:.1f} mg/dL<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="RMSE, mg/dL")
    return finish(figure, height=120 + 34 * leaderboard["model"].nunique())
