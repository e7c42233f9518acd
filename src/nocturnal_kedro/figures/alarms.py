"""Alarms for a low tonight: what they find, what they cost, and whether a probability is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import GREY, finish, panels

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_PER_WEEK = 4.0  # false alarms; nobody keeps an alarm that rings more often


def sensitivity_by_false_alarms(
    trade_off: pd.DataFrame, styles: dict[str, dict[str, object]], low: str = "low"
) -> Figure:
    """Share of low nights found against false alarms a week, by the threshold."""
    figure, of_splits = _panels(trade_off, low)
    for column, of_split in of_splits:
        for model, line in styles.items():
            curve = of_split[of_split["model"] == model]
            figure.add_scatter(
                x=curve["false_alarms_per_week"],
                y=curve["sensitivity_pct"],
                customdata=100 * curve["threshold"],
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="lines",
                line={**line, "shape": "vh"},
                hovertemplate="%{y:.0f} % at %{x:.1f} a week, alarm from %{customdata:.0f} %",
                row=1,
                col=column,
            )
        figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(range=[0, MOST_PER_WEEK], title="false alarms a week")
    figure.update_yaxes(range=[0, 102], title="low nights found, %", col=1)
    return finish(figure, height=440)


def decision_curve(
    trade_off: pd.DataFrame, styles: dict[str, dict[str, object]], low: str = "low"
) -> Figure:
    """Net benefit of an alarm against its threshold, beside an alarm each night and none."""
    figure, of_splits = _panels(trade_off, low)
    highest = 0.5
    for column, of_split in of_splits:
        place = {"row": 1, "col": column}
        shown = of_split[of_split["threshold"].between(0.01, highest)]
        for model, line in styles.items():
            curve = shown[shown["model"] == model]
            figure.add_scatter(
                x=100 * curve["threshold"],
                y=curve["net_benefit"],
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="lines",
                line=line,
                hovertemplate="from %{x:.0f} %: %{y:.3f}",
                **place,
            )
        always = shown.drop_duplicates("threshold").sort_values("threshold")
        figure.add_scatter(
            x=100 * always["threshold"],
            y=always["net_benefit_always"],
            name="an alarm each night",
            showlegend=column == 1,
            mode="lines",
            line={"color": GREY, "width": 1},
            hoverinfo="skip",
            **place,
        )
        figure.add_hline(y=0, line={"color": GREY, "width": 1}, **place)
    top = max(trade_off.loc[trade_off["low"] == low, "net_benefit_always"].max(), 0.01)
    figure.update_xaxes(range=[0, 100 * highest], title="alarm from P(low tonight), %")
    figure.update_yaxes(range=[-0.3 * top, 1.1 * top], title="net benefit, a night", col=1)
    figure.update_yaxes(range=[-0.3 * top, 1.1 * top])
    return finish(figure, height=440)


def event_reliability(
    reliability: pd.DataFrame,
    models: tuple[str, ...],
    styles: dict[str, dict[str, object]],
    low: str = "low",
) -> Figure:
    """How often a low came of nights told alike; bars are 95 % intervals over people.

    The area of a point is the number of its nights.
    """
    figure, of_splits = _panels(reliability, low)
    for column, of_split in of_splits:
        place = {"row": 1, "col": column}
        figure.add_scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": GREY, "width": 1},
            hoverinfo="skip",
            showlegend=False,
            **place,
        )
        for model in models:
            points = of_split[of_split["model"] == model]
            figure.add_scatter(
                x=points["said_pct"],
                y=points["happened_pct"],
                error_y={
                    "array": points["happened_high_pct"] - points["happened_pct"],
                    "arrayminus": points["happened_pct"] - points["happened_low_pct"],
                    "width": 0,
                    "thickness": 1.2,
                },
                customdata=points["nights"],
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="lines+markers",
                line={**styles[model], "width": 1},
                marker={"size": (3 * points["nights"] ** 0.5).clip(4, 24), "line": {"width": 0}},
                hovertemplate="said %{x:.0f} %, came %{y:.0f} % of %{customdata} nights",
                **place,
            )
    figure.update_xaxes(range=[0, 100], title="P(low tonight), %")
    figure.update_yaxes(range=[0, 100], title="low nights, %", col=1)
    return finish(figure, height=440)


def _panels(table: pd.DataFrame, low: str) -> tuple[Figure, list[tuple[int, pd.DataFrame]]]:
    """Room for each split, and the number of its panel with its rows of one kind of low."""
    figure, splits = panels(table["split"])
    of_low = table[table["low"] == low]
    return figure, [
        (column, of_low[of_low["split"] == split]) for column, split in enumerate(splits, start=1)
    ]
