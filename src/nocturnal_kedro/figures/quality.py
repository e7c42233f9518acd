"""Which nights count, or meals, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from nocturnal_kedro.figures import finish
from nocturnal_kedro.series.origins import KEPT

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#009E73", "#E69F00", "#D55E00", "#8a8a8a", "#CC79A7", "#56B4E9")


def nights_by_person(tally: pd.DataFrame) -> Figure:
    """Stacked bars: origins kept and origins dropped by reason, one bar per person."""
    from plotly.graph_objects import Figure

    nights = tally[tally["stage"] == "nights"]
    person = nights["source"] + "/" + nights["subject"]
    table = nights.pivot_table(index=person, columns="reason", values="rows", fill_value=0)
    order = sorted(table.columns, key=lambda reason: reason not in KEPT)
    figure = Figure()
    for reason, colour in zip(order, COLOURS, strict=False):
        figure.add_bar(x=table.index, y=table[reason], name=reason, marker={"color": colour})
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title=order[0].removesuffix(" kept"))
    figure.update_xaxes(tickangle=-60, tickfont={"size": 10})
    return finish(figure, height=420).update_layout(legend={"y": -0.45})
