"""Whether quantiles hold what they say, before and after they were set right on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import GREY, finish, panels, tint

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def quantile_reliability(
    calibration: pd.DataFrame, models: tuple[str, ...], styles: dict[str, dict[str, object]]
) -> Figure:
    """Share of readings under each quantile against its level, less the level; a panel per split.

    Above zero too many readings are under it. Dotted is the model's own, the band the 95 % interval
    over people.
    """
    figure, splits = panels(calibration["split"])
    for column, split in enumerate(splits, start=1):
        place = {"row": 1, "col": column}
        for model in models:
            of_model = calibration[
                (calibration["split"] == split) & (calibration["model"] == model)
            ]
            colour = str(styles[model]["color"])
            for quantiles, curve in of_model.groupby("quantiles"):
                level = 100 * curve["level"]
                calibrated = quantiles == "calibrated"
                if calibrated:
                    low, high = (curve[f"under_{end}_pct"] - level for end in ("low", "high"))
                    figure.add_scatter(
                        x=[*level, *level[::-1]],
                        y=[*low, *high[::-1]],
                        fill="toself",
                        fillcolor=tint(colour, 0.12),
                        line={"width": 0},
                        hoverinfo="skip",
                        showlegend=False,
                        legendgroup=model,
                        **place,
                    )
                figure.add_scatter(
                    x=level,
                    y=curve["under_pct"] - level,
                    name=model if calibrated else f"{model}, as it said",
                    legendgroup=model,
                    showlegend=column == 1,
                    mode="lines",
                    line={"color": colour, "width": 2.2, "dash": "solid" if calibrated else "dot"},
                    hovertemplate="level %{x:.0f} %: %{y:+.1f} points",
                    **place,
                )
        figure.add_hline(y=0, line={"color": GREY, "width": 1}, **place)
    figure.update_xaxes(title="level of the quantile, %")
    figure.update_yaxes(title="readings under it, less the level", col=1)
    return finish(figure, height=420)
