"""The night forecast from midnight, from bedtime, and from every hour of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import validated
from nocturnal_kedro.figures import Section
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.sweeps import Tables

if TYPE_CHECKING:
    from nocturnal_kedro.series.origins import Task
    from nocturnal_kedro.training.cells import Cell, Grounds

TITLE = "How much depends on when the night is forecast?"
METHOD = (
    "One model, trained on windows from all over the evening and the night, is asked from "
    "midnight, from bedtime and from every hour. Judged are the readings between midnight and "
    "06:00 that come after the origin and within its horizon: a later origin has less of the night "
    "left, and has seen more of it. Midnight, bedtime and every hour are shown for the same "
    "nights, which have both a midnight and a bedtime; single hours for all that have them."
)
NIGHT_HOURS = (0, 6)  # that are judged, whatever the origin
NOON = pd.Timedelta(hours=12)  # a night is from noon to noon
FROM = {"midnight": "from midnight", "bedtime": "from bedtime", "sliding": "from every hour"}


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
    every = every.drop_duplicates().sort_values(NIGHT, ignore_index=True)
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
    """Test origins by anchor, of the nights that have a midnight and a bedtime; and by hour."""
    from nocturnal_kedro.training.cells import vary

    by_anchor = {}
    for anchor, task in _tasks(grounds.data.task, options).items():
        origins = vary(grounds.data, task=task).origins
        tested = origins[origins["split"].isin(TEST_SPLITS)][NIGHT]
        by_anchor[anchor] = tested.assign(night=(tested["origin"] - NOON).dt.floor("D"))
    night = [*PERSON, "night"]
    both = by_anchor["midnight"][night].merge(by_anchor["bedtime"][night].drop_duplicates())
    same = [own.merge(both).assign(group=FROM[anchor]) for anchor, own in by_anchor.items()]
    sliding = by_anchor["sliding"].sort_values("night")
    clock = sliding["origin"].dt
    hourly = sliding[clock.minute == 0].assign(group=clock.strftime("from %H:%M"))
    # In the order of the evening and the night.
    hourly = hourly.sort_values("origin", key=lambda origin: (origin - NOON).dt.hour)
    return pd.concat([*same, hourly], ignore_index=True)[["group", *NIGHT]]


def sections(tables: Tables) -> list[Section]:
    """Anchors side by side, and hours."""
    from nocturnal_kedro.figures.sweeps import matrix

    table = tables.summary
    there = list(table["group"].unique())
    judged = "RMSE of the readings between midnight and 06:00 that come after the origin"
    anchors = [group for group in FROM.values() if group in there]
    hours = [group for group in there if group not in ("all", *FROM.values())]
    found = []
    if anchors:
        found.append(
            Section(
                "Anchors side by side",
                f"{judged}, on the same nights; intervals are 95 % over people and seeds.",
                matrix(table, anchors),
            )
        )
    if hours:
        found.append(
            Section(
                "Hour by hour",
                f"{judged}, of all nights that have an origin then; intervals as above.",
                matrix(table, hours),
            )
        )
    return found


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
