"""The main tables of a report as Markdown, to be pasted into notes and papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from nocturnal_kedro.figures import SPLIT_TITLES
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART

Row = Any  # of DataFrame.itertuples
Columns = dict[str, Callable[[Row], str]]


def leaderboard_as_markdown(leaderboard: pd.DataFrame, unit: str) -> str:
    """A table for each source and split, in the leaderboard's order; `unit` is night or meal."""
    columns: Columns = {
        "Model": lambda row: row.model,
        "RMSE, mg/dL": lambda row: _with_interval(row, "rmse", 1),
        "MAE": lambda row: f"{row.mae_mg_dl:.1f}",
        "CRPS": lambda row: _with_interval(row, "crps", 1),
        "In 80 %": lambda row: f"{row.coverage_80_pct:.0f} %",
        "Skill": lambda row: f"{row.skill_vs_last_value:.2f}",
        "Tied": _tied,
    }
    parts = []
    for (source, split), rows in leaderboard.groupby(["source", "split"], sort=False):
        first = rows.iloc[0]
        where = "" if source == "all" else f", {source}"
        counted = f"{first['nights']} {unit}s of {first['subjects']} people"
        rows = rows.assign(place=range(len(rows)))
        parts.append(f"**{SPLIT_TITLES[split]}{where}** ({counted})\n\n{_table(rows, columns)}")
    return "\n\n".join(parts) + "\n"


def sweep_as_markdown(summary: pd.DataFrame) -> str:
    """A table for each split and group of nights: every variant, and how it differs."""
    columns: Columns = {
        "Varied": lambda row: row.question,
        "Variant": lambda row: row.cell,
        "Model": lambda row: row.model,
        "People": lambda row: str(row.people),
        "Nights": lambda row: str(row.nights),
        "RMSE, mg/dL": lambda row: _with_interval(row, "rmse", 1),
        "CRPS": lambda row: _with_interval(row, "crps", 1),
        "AUROC of a low": lambda row: _share(row, "auroc"),
        "Against": lambda row: row.against if isinstance(row.against, str) else "",
        "Difference of RMSE": lambda row: _with_interval(row, "difference", 2),
        "Apart": lambda row: "yes" if row.apart is True or row.apart == "True" else "",
    }
    parts = [
        f"**{SPLIT_TITLES[split]}; nights: {group}**\n\n{_table(rows, columns)}"
        for (split, group), rows in summary.groupby(["split", "group"], sort=False)
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: pd.DataFrame, columns: Columns) -> str:
    lines = [_line(columns), _line("---" for _ in columns)]
    lines += [_line(of(row) for of in columns.values()) for row in rows.itertuples()]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(row: Row, name: str, digits: int) -> str:
    value, low, high = (getattr(row, f"{name}{end}_mg_dl") for end in ("", "_low", "_high"))
    if pd.isna(value):
        return ""
    return f"{value:.{digits}f} ({_span(low, high, digits)})"


def _share(row: Row, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return "" if pd.isna(value) else f"{value:.2f} ({_span(low, high, 2)})"


def _span(low: float, high: float, digits: int) -> str:
    if pd.isna(low) or low == high:  # who is alone is drawn in every resample
        return "too few people"
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _tied(row: Row) -> str:
    if row.place == 0:
        return "best"
    return "tied" if row.tied_with_best and row.subjects >= FEWEST_TO_TELL_APART else ""
