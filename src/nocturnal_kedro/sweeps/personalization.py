"""A model of many people, adapted to one whom it has never seen, on first days of the record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, NoOriginsError
from nocturnal_kedro.figures import Section
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.scores import pool
from nocturnal_kedro.metrics.sweeps import BASELINES
from nocturnal_kedro.series.schema import Numbers, Words
from nocturnal_kedro.series.splits import DAY, recut_splits
from nocturnal_kedro.series.variations import only
from nocturnal_kedro.sweeps import NO_GROUPS, Tables, one_of, tuned_from

if TYPE_CHECKING:
    from nocturnal_kedro.training.cells import Cell, Grounds
    from nocturnal_kedro.training.data import Data

logger = logging.getLogger(__name__)

TITLE = "Does it pay to adapt it to a person?"
METHOD = (
    "The population's model has never seen the person. It is adapted on the first days of the "
    "person's record: all weights (full), the head alone, or low-rank adapters (lora). Days before "
    "the last ones choose when to stop; the last days are the test, the same for every variant. "
    "Served: the adapted model where its error on those validation days is no larger than the "
    "population's, else the population's. Bands are the population's."
)
Manner = Literal["full", "head", "lora"]
POPULATION = "population"
SERVED = ", served"
ADAPTED: dict[str, dict[str, Any]] = {
    "full": {},
    "head": {"layers": "head"},
    "lora": {"lora": {"rank": 4, "alpha": 8}},
}


class Options(BaseModel, extra="forbid", frozen=True):
    """On how many days, how, and who is held out."""

    # 0 is always there
    days: Numbers[Annotated[int, Field(ge=1)]] = Field(default=(3, 7, 14, 30), min_length=1)
    manners: Annotated[Words, one_of("manner of personalization", get_args(Manner))] = get_args(
        Manner
    )
    test_days: int = Field(default=14, ge=2)  # the last ones
    validation_days: int = Field(default=7, ge=2)  # those before them
    # 1: the people of the split `patient`. More: everybody, each in one of so many groups that are
    # held out in turn, with a population's model for each.
    folds: int = Field(default=1, ge=1)
    epochs: int = Field(default=10, ge=1)  # of an adaptation, with the patience of `training`
    steps_per_epoch: int = Field(default=10, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)  # of it; the model's usual where None


def plan(grounds: Grounds, options: Options) -> list[Cell]:
    """Of every person held out the population's model, each adaptation of it, and the baselines."""
    hours = grounds.training.anchor_hours
    folds = [(data, _people_of(data, options, hours)) for data in _folds(grounds, options)]
    if not any(people for _, people in folds):
        raise InputError(
            f"personalization: nobody who is held out has {min(options.days)} days to adapt on, "
            f"{options.validation_days} for validation and {options.test_days} to test on. Give "
            f"longer records, or fewer days by personalization.test_days and so on."
        )
    return [
        *(cell for data, people in folds for cell in _baselines(grounds, data, people)),
        *(cell for data, people in folds for cell in _adaptations(grounds, options, data, people)),
    ]


def groups(grounds: Grounds, options: Options) -> pd.DataFrame:
    """None: the test nights of all who are held out."""
    return NO_GROUPS


def derive(night_scores: pd.DataFrame) -> pd.DataFrame:
    """The scores, and those of what would be served: see `METHOD`."""
    run = ["question", "cell", "model", "seed"]
    adapted = night_scores[night_scores["question"].isin(ADAPTED)]
    judged = pool(adapted[adapted["split"] == "validation"], [*run, "number", *PERSON])
    error = judged.set_index([*run, *PERSON])["rmse_mg_dl"]
    population = error.xs(POPULATION, level="cell")
    tables = [night_scores]
    for (question, cell, model, seed), own in adapted.groupby(run, sort=False):
        if cell == POPULATION:
            continue
        before = adapted[
            (adapted["cell"] == POPULATION)
            & (adapted["question"] == question)
            & (adapted["model"] == model)
            & (adapted["seed"] == seed)
        ]
        change = error[question, cell, model, seed] - population[question, model, seed]
        better = change.index[change <= 0]
        taken, left = _of_people(own, better), _of_people(before, change.index[change > 0])
        served = pd.concat([taken, left.assign(number=own["number"].iloc[0])])
        # Chosen by its validation nights, it is not to be ranked by them.
        served = served[served["split"] != "validation"]
        tables.append(
            served.assign(
                question=f"{question}{SERVED}", cell=f"{cell}{SERVED}", against=POPULATION
            )
        )
    return pd.concat(tables, ignore_index=True)


def sections(tables: Tables) -> list[Section]:
    """What adaptation changes, and how errors go with days, of everybody and of each person."""
    from nocturnal_kedro.figures.sweeps import effects, learning_curves

    questions = [q for q in tables.summary["question"].unique() if q in ADAPTED]
    return [
        Section(
            "What adaptation changes",
            "RMSE of the adapted model less that of the population's, on the same nights; bars are "
            "95 % intervals over people and seeds. Variants with more days have fewer people.",
            effects(tables.summary, "all"),
        ),
        *(
            Section(
                f"By days: {question}",
                "Test RMSE of each person (thin), and the mean of those with all numbers of days.",
                learning_curves(tables.people, question, "days of adaptation"),
            )
            for question in questions
        ),
    ]


def _of_people(scores: pd.DataFrame, people: pd.MultiIndex) -> pd.DataFrame:
    return scores[pd.MultiIndex.from_frame(scores[PERSON]).isin(people)]


def _folds(grounds: Grounds, options: Options) -> list[Data]:
    """The data with each group of people held out."""
    from nocturnal_kedro.training.cells import vary

    if options.folds == 1:
        return [grounds.data]
    names = grounds.people.to_numpy()
    if options.folds > len(names):
        raise InputError(
            f"personalization.folds is {options.folds}, and there are {len(names)} people. Give "
            f"2 to {len(names)}."
        )
    # Dealt out source by source, so that each is in every fold as evenly as can be.
    order = np.random.default_rng(grounds.cut.seed).permutation(len(names))
    order = order[np.argsort(grounds.data.corpus.people["source"].to_numpy()[order], kind="stable")]
    return [
        vary(
            grounds.data,
            splits=recut_splits(
                grounds.data.splits,
                grounds.cut.model_copy(
                    update={"hold_out": tuple(sorted(names[order[fold :: options.folds]]))}
                ),
            ),
        )
        for fold in range(options.folds)
    ]


def _people_of(data: Data, options: Options, hours: float | None) -> dict[str, dict[int, Data]]:
    """Of each person held out, and each number of days there is room for, the person's own data.

    `hours` around the anchor are what training windows are taken from.
    """
    held_out = data.splits[data.splits["split"] == "patient"]
    found: dict[str, dict[int, Data]] = {}
    for person in held_out.itertuples():
        name = f"{person.source}/{person.subject}"
        by_days = {days: _own_data(data, person, days, options) for days in sorted(options.days)}
        possible = {
            days: own
            for days, own in by_days.items()
            if own and len(own.night_rows("validation")) and len(own.rows_around_anchor(hours))
        }
        if possible:
            found[name] = possible
        else:
            logger.info("personalization: %s has too few days, or readings, to adapt on", name)
    return found


def _own_data(data: Data, person: Any, days: int, options: Options) -> Data | None:
    """The person's first days to learn from, the last to test on; None where there are too few."""
    from nocturnal_kedro.training.cells import vary

    test = person.end - options.test_days * DAY
    validation = test - options.validation_days * DAY
    adapted = person.start + days * DAY
    if adapted > validation:
        return None
    splits = pd.DataFrame(
        [
            ("train", person.start, adapted),
            ("unused", adapted, validation),
            ("validation", validation, test),
            ("patient", test, person.end),
        ],
        columns=["split", "start", "end"],
    ).query("start < end", engine="python")
    splits.insert(0, "source", person.source)
    splits.insert(1, "subject", person.subject)
    name = f"{person.source}/{person.subject}"
    own = {n: clock for n, clock in data.task.bedtimes.items() if n in (name, person.source)}
    task = data.task.model_copy(update={"bedtimes": own})
    corpus = only(data.corpus, [name])
    try:
        return vary(data, corpus=corpus, splits=splits.reset_index(drop=True), task=task)
    except NoOriginsError:
        return None


def _adaptations(
    grounds: Grounds, options: Options, data: Data, people: dict[str, dict[int, Data]]
) -> Iterator[Cell]:
    from nocturnal_kedro.training.cells import Cell

    for model, given, seed, training in grounds.each_model():
        alone = partial(Cell, model=model, seed=seed)
        population = alone(POPULATION, POPULATION, data=data, training=training, given=given)
        shorter = training.model_copy(
            update={"epochs": options.epochs, "steps_per_epoch": options.steps_per_epoch}
        )
        tuned = tuned_from(given, options.learning_rate, "lora", "layers")
        known: Any = plugins.options("model", model, given)
        for manner in options.manners:
            if manner == "head" and not known.head:
                logger.info("personalization: %s has no head apart from its network", model)
                continue
            for by_days in people.values():
                adapted = partial(alone, manner, training=shorter, start=population, bands="start")
                first = next(iter(by_days.values()))
                yield adapted(name=POPULATION, number=0.0, data=first, zero_shot=True)
                for days, own in by_days.items():
                    yield adapted(
                        name=f"{manner}, {days} days",
                        number=float(days),
                        against=POPULATION,
                        data=own,
                        given=tuned | ADAPTED[manner],
                    )


def _baselines(grounds: Grounds, data: Data, people: dict[str, dict[int, Data]]) -> Iterator[Cell]:
    """As fitted to the population: of each of these people none of them knows anything else."""
    from nocturnal_kedro.training.cells import Cell

    for by_days in people.values():
        own = next(iter(by_days.values()))
        for name, given in grounds.baselines.items():
            yield Cell(BASELINES, name, name, data, grounds.training, given, tested=own)
