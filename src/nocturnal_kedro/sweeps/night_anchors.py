"""The same night forecast from midnight, from bedtime, and from every hour of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import validated
from nocturnal_kedro.figures import Section
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.sweeps import Tables

if TYPE_CHECKING:
    from nocturnal_kedro.series.origins import Task
    from nocturnal_kedro.training.cells import Cell, Grounds

TITLE = "From when is the night forecast?"
METHOD = (
    "One model, trained on windows from all over the evening and the night, is asked from "
    "midnight, from bedtime and from every hour. All are judged by the same readings, those from "
    "midnight to 06:00: a later origin has less of the night left, and has seen more of it."
)
NIGHT_HOURS = (0, 6)  # that are judged, whatever the origin


class Options(BaseModel, extra="forbid", frozen=True):
    """Which origins there are."""

    every_steps: int = Field(default=12, ge=1)
    sliding_hours: tuple[float, float] = (21.0, 5.0)
    bedtimes: dict[str, str] = {}  # see series.origins.Task


def plan(grounds: Grounds, options: Options) -> list[Cell]:
    """One cell of each model and seed, asked from all anchors."""
    from nocturnal_kedro.training.cells import Cell, vary

    tasks = _tasks(grounds.data.task, options)
    by_anchor = {anchor: vary(grounds.data, task=task) for anchor, task in tasks.items()}
    learnt = by_anchor["sliding"]
    every = pd.concat([data.origins for data in by_anchor.values()])
    every = every.drop_duplicates().sort_values(["source", "subject", "origin"], ignore_index=True)
    tested = replace(learnt, origins=every)
    shared = replace(grounds, data=learnt)
    return [
        *(replace(cell, clock=NIGHT_HOURS) for cell in shared.baseline_cells(tested)),
        *(
            Cell(
                "models", model, model, learnt, training, given,
                against="last_value", seed=seed, tested=tested, clock=NIGHT_HOURS,
            )
            for model, given, seed, training in grounds.each_model()
        ),
    ]  # fmt: skip


def groups(grounds: Grounds, options: Options) -> pd.DataFrame:
    """The test nights from each anchor; one may be from two."""
    from nocturnal_kedro.training.cells import vary

    tables = []
    for anchor, task in _tasks(grounds.data.task, options).items():
        origins = vary(grounds.data, task=task).origins
        tested = origins[origins["split"].isin(TEST_SPLITS)]
        tables.append(tested[["source", "subject", "origin"]].assign(group=f"from {anchor}"))
    return pd.concat(tables, ignore_index=True)


def sections(tables: Tables) -> list[Section]:
    """Anchors side by side."""
    from nocturnal_kedro.figures.sweeps import matrix

    table = tables.summary
    return [
        Section(
            "Anchors side by side",
            "RMSE of the readings from midnight to 06:00, by what the forecast was made from, with "
            "95 % intervals over people.",
            matrix(table, [group for group in table["group"].unique() if group != "all"]),
        )
    ]


def _tasks(task: Task, options: Options) -> dict[str, Task]:
    """The same question from each anchor."""
    plain = {
        "context_steps": task.context_steps,
        "horizon_steps": task.horizon_steps,
        "coverage": task.coverage,
    }
    own: dict[str, dict[str, Any]] = {
        "midnight": {},
        "bedtime": {"bedtimes": options.bedtimes},
        "sliding": {"every_steps": options.every_steps, "sliding_hours": options.sliding_hours},
    }
    return {
        anchor: validated(type(task), plain | {"anchor": anchor, **given}, "night_anchors")
        for anchor, given in own.items()
    }
