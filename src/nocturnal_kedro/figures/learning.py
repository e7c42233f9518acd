"""The error on validation through the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import finish

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def learning_curves(logs: dict[str, pd.DataFrame], styles: dict[str, dict[str, object]]) -> Figure:
    """Validation RMSE by epoch; the best epoch, which was kept, is marked.

    What was not trained has no curve; of several stages the last, forecasting, is shown.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    for model, log in logs.items():
        if log.empty:
            continue
        log = log[log["stage"] == "forecast"]
        figure.add_scatter(
            x=log["epoch"],
            y=log["validation_rmse"],
            name=model,
            mode="lines+markers",
            line=styles[model],
            hovertemplate="epoch %{x}: %{y:.3f}",
        )
        best = log.loc[log["validation_rmse"].idxmin()]
        figure.add_scatter(
            x=[best["epoch"]],
            y=[best["validation_rmse"]],
            mode="markers",
            marker={"size": 13, "symbol": "circle-open", "color": styles[model]["color"]},
            showlegend=False,
            hoverinfo="skip",
        )
    figure.update_xaxes(title="epoch", dtick=1)
    figure.update_yaxes(title="validation RMSE, standard deviations")
    return finish(figure, height=360)
