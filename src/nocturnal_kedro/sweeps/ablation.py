"""What a model learns from: covariates, context, days, people, readings, one at a time varied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro import plugins
from nocturnal_kedro.figures import Section
from nocturnal_kedro.series.corpus import CHANNELS
from nocturnal_kedro.series.covariates import CLOCK
from nocturnal_kedro.series.origins import origin_rows
from nocturnal_kedro.series.schema import (
    STEP_MINUTES,
    STEPS_PER_DAY,
    STEPS_PER_HOUR,
    TEST_SPLITS,
    Numbers,
    Words,
)
from nocturnal_kedro.series.variations import (
    SLOW_MINUTES,
    keep_days,
    keep_people,
    read_every_15_minutes,
    trained_people,
)
from nocturnal_kedro.sweeps import NO_GROUPS, Tables, one_of

if TYPE_CHECKING:
    from nocturnal_kedro.training.cells import Cell, Grounds
    from nocturnal_kedro.training.data import Data

logger = logging.getLogger(__name__)

TITLE = "What does it learn from?"
METHOD = (
    "Each variant is trained anew and differs from the whole in one respect; origins, test nights "
    "and training seeds are the same. Covariates are added one after the other, each compared with "
    "the rung before it; the others are compared with the whole."
)
Question = Literal["covariates", "context", "days", "people", "sampling"]
Share = Annotated[float, Field(gt=0, le=1)]
# Added one after the other to glucose alone.
LADDER = {
    "insulin": ("iob_u",),
    "carbs": ("cob_g",),
    "activity": ("steps", "heart_rate"),
    "clock": (CLOCK,),
}
INSULIN = "iob_u"
KNOWN = "insulin known"  # the group of nights where it is on record at the origin


class Options(BaseModel, extra="forbid", frozen=True):
    """What is varied; shares are of the days and people that there are to train on."""

    questions: Annotated[Words, one_of("question of the ablation", get_args(Question))] = get_args(
        Question
    )
    context_steps: Numbers[Annotated[int, Field(ge=STEPS_PER_DAY)]] = (288, 512, 1024)
    day_shares: Numbers[Share] = (0.1, 0.25, 0.5, 1.0)
    people_shares: Numbers[Share] = (0.25, 0.5, 1.0)


class Variant(NamedTuple):
    """One value of what a question varies."""

    name: str
    number: float
    against: str  # the name of another; "" of what the others are compared with
    data: Data
    covariates: tuple[str, ...] | None = None  # the model's usual ones where None


def plan(grounds: Grounds, options: Options) -> list[Cell]:
    """Every variant of every question, for every model and seed; and the baselines."""
    from nocturnal_kedro.training.cells import Cell

    shared = {
        question: make(grounds, options)
        for question, make in SHARED.items()
        if question in options.questions
    }
    cells = grounds.baseline_cells()
    for name, given, seed, training in grounds.each_model():
        usable: Any = plugins.options("model", name, given)
        own = {"covariates": _rungs(grounds.data, name, usable.can_use)}
        for question in options.questions:
            for variant in _learnable((own | shared)[question], training.anchor_hours):
                chosen = variant.covariates
                cells.append(
                    Cell(
                        question=question,
                        name=variant.name,
                        model=name,
                        data=variant.data,
                        training=training,
                        given=given if chosen is None else given | {"covariates": chosen},
                        number=variant.number,
                        against=variant.against,
                        seed=seed,
                    )
                )
    return cells


def groups(grounds: Grounds, options: Options) -> pd.DataFrame:
    """Test nights on which insulin is on record at the origin, where not all are."""
    origins = grounds.data.origins
    tested = origins[origins["split"].isin(TEST_SPLITS)]
    rows = origin_rows(grounds.data.corpus, tested)
    known = grounds.data.corpus.observed_TC[rows, CHANNELS.index(INSULIN)]
    if known.all():
        return NO_GROUPS
    return tested.loc[known, ["source", "subject", "origin"]].assign(group=KNOWN)


def sections(tables: Tables) -> list[Section]:
    """What each step adds, and how errors go with hours, days, people and readings."""
    from nocturnal_kedro.figures.sweeps import curve, effects

    table = tables.summary
    shown = KNOWN if (table["group"] == KNOWN).any() else "all"
    found = [
        Section(
            "What each variant changes",
            f"RMSE of each variant less that of what it is compared with, on the same nights; "
            f"bars are 95 % intervals over people and seeds, filled points are apart from zero. "
            f"Nights: {shown}.",
            effects(table, shown),
        )
    ]
    for question, (title, axis) in CURVES.items():
        numbers = table.loc[table["question"] == question, "number"]
        if numbers.nunique() > 1:
            found.append(
                Section(
                    title,
                    f"Subject-macro RMSE by {axis}; bars are 95 % intervals over people and seeds.",
                    curve(table, question, "all", axis),
                )
            )
    return found


def _rungs(data: Data, model: str, usable: tuple[str, ...]) -> list[Variant]:
    """The ladder of covariates, without rungs that the model or the data do not have."""
    recorded = np.array(CHANNELS)[np.asarray(data.corpus.observed_TC).any(axis=0)]
    given: tuple[str, ...] = ()
    rungs = [Variant("glucose", 0, "", data, given)]
    for name, covariates in LADDER.items():
        added = tuple(c for c in covariates if c in usable and c in (*recorded, CLOCK))
        if not added:
            logger.info(
                "ablation: no rung '%s' for %s, which cannot use it, or nobody has it on record",
                name,
                model,
            )
            continue
        given = given + added
        rungs.append(Variant(f"+ {name}", len(rungs), rungs[-1].name, data, given))
    return rungs


def _learnable(variants: list[Variant], hours: float | None) -> Iterator[Variant]:
    """Without those that leave no window to learn from: a window takes more than a day."""
    for variant in variants:
        if len(variant.data.rows_around_anchor(hours)):
            yield variant
        else:
            logger.info("ablation: '%s' leaves no window to learn from", variant.name)


def _contexts(grounds: Grounds, options: Options) -> list[Variant]:
    """Hours that a model looks back; eligible origins do not depend on them."""
    whole = grounds.data.task.context_steps

    def named(steps: int) -> str:
        return f"{steps / STEPS_PER_HOUR:.3g} h of context"

    return [
        Variant(
            named(steps),
            steps / STEPS_PER_HOUR,
            named(whole) if steps != whole else "",
            replace(
                grounds.data, task=grounds.data.task.model_copy(update={"context_steps": steps})
            ),
        )
        for steps in sorted({*options.context_steps, whole})
    ]


def _days(grounds: Grounds, options: Options) -> list[Variant]:
    """The last days of everybody's training; validation and tests are the same."""
    return [
        Variant(
            f"{100 * share:g} % of the days",
            100 * share,
            "100 % of the days" if share < 1 else "",
            _vary(grounds.data, splits=keep_days(grounds.data.splits, share)),
        )
        for share in sorted({*options.day_shares, 1.0})
    ]


def _people(grounds: Grounds, options: Options) -> list[Variant]:
    """Some of the people; of one seed of the splits the fewer are among the more."""
    splits, everybody = grounds.data.splits, len(trained_people(grounds.data.splits))
    numbers = {max(1, round(share * everybody)) for share in options.people_shares}
    return [
        Variant(
            f"{number} people",
            number,
            f"{everybody} people" if number < everybody else "",
            _vary(grounds.data, splits=keep_people(splits, number, grounds.cut.seed)),
        )
        for number in sorted({*numbers, everybody})
    ]


def _sampling(grounds: Grounds, options: Options) -> list[Variant]:
    """Readings every 15 minutes in place of 5, scored by all the readings that there are."""
    data = grounds.data
    if (data.corpus.people["sampling_steps"] * STEP_MINUTES >= SLOW_MINUTES).all():
        logger.info("ablation: every sensor reads each 15 minutes; there is nothing to thin")
        return []
    every_5, every_15 = "readings every 5 min", "readings every 15 min"
    thinned = _vary(data, corpus=read_every_15_minutes(data.corpus))
    return [Variant(every_5, 5, "", data), Variant(every_15, 15, every_5, thinned)]


def _vary(data: Data, **changed: Any) -> Data:
    from nocturnal_kedro.training.cells import vary

    return vary(data, **changed)


SHARED: dict[str, Callable[[Grounds, Options], list[Variant]]] = {
    "context": _contexts,
    "days": _days,
    "people": _people,
    "sampling": _sampling,
}
CURVES = {
    "context": ("How far back it looks", "hours of context"),
    "days": ("How many days it has learnt from", "share of everybody's training days, in percent"),
    "people": ("How many people it has learnt from", "people, drawn once for all seeds"),
}
