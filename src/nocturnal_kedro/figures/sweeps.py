"""What a sweep varied, and what came of it; tables are those of `metrics.sweeps`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.figures import (
    GREY,
    MODEL_COLOURS,
    SPLIT_TITLES,
    finish,
    line_styles,
    panels,
    tint,
)
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.sweeps import BASELINES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SPAN_OF_LOG_AXIS = 8  # numbers that differ by more are evenly seen on a logarithmic axis alone
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
# A number that stands alone in a cell's name: not those of azt1d and aleppo_2017.
NUMBER = re.compile(r"(?<![\w.])\d+(\.\d+)?(?!\w)")
MEASURES = {
    "rmse_mg_dl": "RMSE, mg/dL",
    "crps_mg_dl": "CRPS, mg/dL",
    "difference_mg_dl": "difference of RMSE, mg/dL",
    "crps_difference_mg_dl": "difference of CRPS, mg/dL",
}
BETTER_TO_WORSE = [[0, MODEL_COLOURS[0]], [0.5, "#f4f4f4"], [1, MODEL_COLOURS[1]]]
PANELS_A_ROW = 3


def effects(table: pd.DataFrame, group: str = "all") -> Figure:
    """RMSE of every cell less that of the cell it is compared with, a panel per split.

    Bars are 95 % intervals over people and seeds; what cannot be told apart is hollow.
    """
    styles = _styles(table)
    compared = _of_group(table, group).dropna(subset="difference_mg_dl")
    if compared.empty:
        raise InputError(f"no cell is compared with another on the nights of {group}.")
    places, labels = _rows_of_questions(compared)
    figure, splits = panels(table["split"])
    models = list(compared["model"].unique())
    beside = _dodge(len(models), 0.6 / len(models))
    for column, split in enumerate(splits, start=1):
        for number, model in enumerate(models):
            rows = compared[(compared["split"] == split) & (compared["model"] == model)]
            colour = styles[model]["color"]
            figure.add_scatter(
                x=rows["difference_mg_dl"],
                y=[
                    places[key] + beside[number]
                    for key in rows[["question", "cell"]].itertuples(index=False)
                ],
                error_x=_bars(rows, "difference_mg_dl", colour),
                customdata=rows[["cell", "against", "paired_people"]],
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                mode="markers",
                marker={
                    "size": 10,
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                    "symbol": np.where(rows["apart"], "circle", "circle-open"),
                },
                hovertemplate="%{customdata[0]} less %{customdata[1]}: %{x:+.1f} mg/dL "
                "(%{customdata[2]} people)",
                row=1,
                col=column,
            )
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, row=1, col=column)
    title = "difference of RMSE, mg/dL<br>left is better, filled: told apart"
    figure.update_xaxes(title=title, matches="x")
    finish(figure, height=150 + (22 + 5 * len(models)) * len(labels))
    # Room below for the title in two lines, however high the figure is.
    figure.update_layout(
        margin={"b": 110}, legend={"yref": "container", "y": 0, "yanchor": "bottom"}
    )
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "automargin": True}
    return figure.update_yaxes(range=[len(labels) - 0.4, -0.6], **ticks)


def curve(
    table: pd.DataFrame, question: str, group: str = "all", axis: str | None = None
) -> Figure:
    """RMSE by what a question varied, with 95 % intervals, beside the baselines; a panel per split.

    `axis` says what its numbers are, the question where it is not given. A model with several cells
    at one number has a line for each kind of cell.
    """
    styles = _styles(table)
    of_group = _of_group(table, group)
    lines = _lines(of_group, question)
    baselines = of_group[of_group["question"] == BASELINES]
    ends = [lines["number"].min(), lines["number"].max()]
    figure, splits = panels(table["split"])
    for column, split in enumerate(splits, start=1):
        place = {"row": 1, "col": column}
        of_lines = lines.groupby(["model", "line"], sort=False)
        for aside, ((model, line), rows) in zip(
            _dodge(of_lines.ngroups, 0.008), of_lines, strict=True
        ):
            kind = list(lines.loc[lines["model"] == model, "line"].unique()).index(line)
            own = rows[rows["split"] == split].sort_values("number")
            figure.add_scatter(
                x=_moved(own["number"], lines["number"], aside),
                y=own["rmse_mg_dl"],
                error_y=_bars(own, "rmse_mg_dl", styles[model]["color"]),
                customdata=own[["cell", "people"]],
                name=line,
                legendgroup=line,
                showlegend=column == 1,
                mode="lines+markers",
                line={**styles[model], "width": 2},
                marker={"size": 9, "symbol": SYMBOLS[kind % len(SYMBOLS)]},
                hovertemplate="%{customdata[0]}: %{y:.1f} mg/dL (%{customdata[1]} people)",
                **place,
            )
        for baseline in baselines[baselines["split"] == split].itertuples():
            figure.add_scatter(
                x=ends,
                y=[baseline.rmse_mg_dl] * 2,
                name=baseline.model,
                legendgroup=baseline.model,
                showlegend=column == 1,
                mode="lines",
                line=styles[baseline.model],
                hovertemplate="%{y:.1f} mg/dL",
                **place,
            )
    _number_axis(figure, lines["number"], axis or question, row=1)
    figure.update_yaxes(title="RMSE, mg/dL (mean over people)", col=1)
    return finish(figure, height=460).update_layout(legend={"y": -0.18})


def matrix(table: pd.DataFrame, groups: Iterable[str], measure: str = "rmse_mg_dl") -> Figure:
    """Cells by groups of nights, with 95 % intervals, a panel per model and split.

    `measure` is one of MEASURES; differences that can be told apart are bold.
    """
    from plotly.subplots import make_subplots

    require_known("measure", measure, MEASURES)
    groups = list(groups)
    told = pd.concat([_of_group(table, group) for group in groups]).dropna(subset=measure)
    own = told[told["question"] != BASELINES]
    models, splits = (
        list(own["model"].unique()),
        [s for s in SPLIT_TITLES if s in set(own["split"])],
    )
    if not models:
        raise InputError(f"no cell has a {measure} on the nights of {', '.join(groups)}.")
    in_order = table.drop_duplicates(["question", "cell"])["cell"].unique()
    rows = {model: _cells_of(told, model, in_order) for model in models}
    high = [len(cells) for cells in rows.values()]
    height = 110 + sum(60 + 40 * number for number in high)
    figure = make_subplots(
        rows=len(models),
        cols=len(splits),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=70 / height,
        row_heights=high,
        subplot_titles=[f"{model}: {SPLIT_TITLES[split]}" for model in models for split in splits],
    )
    compares = "difference" in measure
    low, top = (measure.replace("_mg_dl", f"_{end}_mg_dl") for end in ("low", "high"))
    for row, (model, cells) in enumerate(rows.items(), start=1):
        for column, split in enumerate(splits, start=1):
            shown = told[(told["split"] == split) & told["model"].isin([model, *cells])]
            shown = shown.set_index(["cell", "group"])
            shown = shown.reindex(pd.MultiIndex.from_product([cells, groups]))
            texts = [
                _box(value, least, most, bool(compares and apart is True), "+" * compares)
                for value, least, most, apart in zip(
                    *(shown[name] for name in (measure, low, top, "apart")), strict=True
                )
            ]
            shape = len(cells), len(groups)
            figure.add_heatmap(
                x=groups,
                y=cells,
                z=shown[measure].to_numpy(float).reshape(shape),
                text=np.reshape(texts, shape),
                texttemplate="%{text}",
                textfont={"size": 11},
                coloraxis="coloraxis",
                xgap=2,
                ygap=2,
                hovertemplate="%{y}, nights of %{x}: %{z:.1f} mg/dL<extra></extra>",
                row=row,
                col=column,
            )
    bar = {"title": {"text": MEASURES[measure], "side": "right"}, "thickness": 12}
    scale = {"colorscale": BETTER_TO_WORSE, "cmid": 0} if compares else {"colorscale": "Cividis"}
    figure.update_layout(coloraxis={**scale, "colorbar": bar})
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    finish(figure, height=height).update_xaxes(showgrid=False)
    return figure.update_yaxes(showgrid=False)


def learning_curves(people: pd.DataFrame, question: str, axis: str | None = None) -> Figure:
    """Each person's RMSE by what a question varied (thin), and the mean of those who have all.

    `people` is what `metrics.sweeps.by_person` gives; a panel per split, model and kind of cell.
    """
    from plotly.subplots import make_subplots

    styles = _styles(people)
    lines = _lines(people, question)
    shown = [
        (split, line, rows)
        for split in SPLIT_TITLES
        for line, rows in lines[lines["split"] == split].groupby("line", sort=False)
    ]
    columns = min(PANELS_A_ROW, len(shown))
    high = ceil(len(shown) / columns)
    height = 100 + 280 * high
    # Of every person the mean over seeds, and one column per number.
    wide = [rows.pivot_table("rmse_mg_dl", PERSON, "number") for _, _, rows in shown]
    titles = [
        f"{line}<br><span style='font-size:11px'>{SPLIT_TITLES[split].lower()}: mean of "
        f"{len(errors.dropna())} of {len(errors)}</span>"
        for (split, line, _), errors in zip(shown, wide, strict=True)
    ]
    figure = make_subplots(
        rows=high,
        cols=columns,
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=80 / height,
        subplot_titles=titles,
    )
    for number, ((_, _, rows), errors) in enumerate(zip(shown, wide, strict=True)):
        colour = str(styles[rows["model"].iloc[0]]["color"])
        # One trace for all people; the hole after each person's numbers ends the line.
        each = errors.assign(hole=np.nan)
        mean = errors.dropna().mean()
        place = {"row": number // columns + 1, "col": number % columns + 1}
        figure.add_scatter(
            x=[*errors.columns, None] * len(errors),
            y=each.to_numpy().ravel(),
            mode="lines+markers",
            line={"color": tint(colour, 0.35), "width": 1},
            marker={"size": 3},
            hoverinfo="skip",
            **place,
        )
        figure.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines+markers",
            line={"color": colour, "width": 4},
            marker={"size": 8},
            hovertemplate="%{x}: %{y:.1f} mg/dL<extra></extra>",
            **place,
        )
    _number_axis(figure, lines["number"], axis or question, row=high)
    figure.update_yaxes(title="RMSE, mg/dL", col=1)
    return finish(figure, height=height).update_layout(showlegend=False, margin={"t": 70})


def _styles(table: pd.DataFrame) -> dict[str, dict[str, object]]:
    is_baseline = table["question"] == BASELINES
    models = table.loc[~is_baseline, "model"].unique()
    return line_styles(models, table.loc[is_baseline, "model"].unique())


def _of_group(table: pd.DataFrame, group: str) -> pd.DataFrame:
    return table[table["group"] == require_known("group of nights", group, table["group"].unique())]


def _rows_of_questions(compared: pd.DataFrame) -> tuple[dict[tuple[str, str], int], list[str]]:
    """Where each question and cell stands, and what is written there: a heading, then its cells."""
    places: dict[tuple[str, str], int] = {}
    labels: list[str] = []
    for question, rows in compared.groupby("question", sort=False):
        cells = rows.drop_duplicates("cell").set_index("cell")["against"]
        one = cells.nunique() == 1
        labels.append(f"<b>{question}</b>" + f", against {cells.iloc[0]}" * one)
        for cell, against in cells.items():
            places[str(question), str(cell)] = len(labels)
            labels.append(str(cell) + f" against {against}" * (not one))
    return places, labels


def _lines(table: pd.DataFrame, question: str) -> pd.DataFrame:
    """The rows of a question that have a number, with a column line.

    That is the model; or, where a model has several cells at a number, the model and what their
    names have beside numbers. What is the only one of its kind, at a number that no other kind has
    (no day of adaptation), begins or ends the lines of every kind.
    """
    require_known("question", question, table["question"].unique())
    rows = table[table["question"] == question].dropna(subset="number")
    if rows.empty:
        raise InputError(f"no cell of '{question}' has a number, so there is no line to draw.")
    lines = []
    for model, own in rows.groupby("model", sort=False):
        cells = own[["cell", "number"]].drop_duplicates("cell")
        if not cells["number"].duplicated().any():
            lines.append(own.assign(line=model))
            continue
        kinds = cells["cell"].str.replace(NUMBER, "…", regex=True)
        alone = ~kinds.duplicated(keep=False) & ~cells["number"].duplicated(keep=False)
        kind = own["cell"].map(dict(zip(cells["cell"], kinds, strict=True)))
        shared = own["cell"].isin(cells.loc[alone, "cell"])
        for name in kinds[~alone].unique():
            lines.append(own[(kind == name) | shared].assign(line=f"{model}, {name}"))
    return pd.concat(lines, ignore_index=True)


def _number_axis(figure: Figure, numbers: pd.Series, title: str, row: int) -> None:
    """Ticks at the numbers that were tried, logarithmic where far apart; the title in one row."""
    values = np.sort(numbers.unique())
    figure.update_xaxes(
        type="log" if _far_apart(numbers) else "linear",
        tickvals=values,
        ticktext=[f"{round(value, 2):g}" for value in values],
    )
    figure.update_xaxes(title=title, row=row)


def _far_apart(numbers: pd.Series) -> bool:
    return bool(0 < SPAN_OF_LOG_AXIS * numbers.min() < numbers.max())


def _moved(number: pd.Series, numbers: pd.Series, share: float) -> pd.Series:
    """Numbers moved by a share of their axis, so that bars at one number stand side by side."""
    if _far_apart(numbers):
        return number * (numbers.max() / numbers.min()) ** share
    return number + share * (numbers.max() - numbers.min())


def _dodge(count: int, apart: float) -> np.ndarray:
    """Places around 0 for things side by side."""
    return apart * (np.arange(count) - (count - 1) / 2)


def _bars(rows: pd.DataFrame, measure: str, colour: object) -> dict[str, object]:
    """The 95 % interval of a measure, as plotly takes it."""
    low, high = (rows[measure.replace("_mg_dl", f"_{end}_mg_dl")] for end in ("low", "high"))
    return {
        "array": high - rows[measure],
        "arrayminus": rows[measure] - low,
        "color": colour,
        "thickness": 1.5,
        "width": 3,
    }


def _cells_of(told: pd.DataFrame, model: str, in_order: Iterable[str]) -> list[str]:
    """A model's cells and then the baselines, in order."""
    baseline = told["question"] == BASELINES
    own = set(told.loc[~baseline & (told["model"] == model), "cell"])
    others = set(told.loc[baseline, "cell"])
    return [cell for cells in (own, others) for cell in in_order if cell in cells]


def _box(value: float, low: float, high: float, apart: bool, sign: str) -> str:
    """What stands in a box of the matrix: a number over its interval."""
    if np.isnan(value):
        return ""
    number = f"<b>{value:{sign}.1f}</b>" if apart else f"{value:{sign}.1f}"
    return f"{number}<br>{low:{sign}.1f} to {high:{sign}.1f}"
