"""What is learnt from some people and holds for others: across sources, and across sensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import Section
from nocturnal_kedro.metrics.sweeps import OWN_GROUP
from nocturnal_kedro.series.schema import STEP_MINUTES, TEST_SPLITS, Words
from nocturnal_kedro.series.variations import learn_from, most_days
from nocturnal_kedro.sweeps import Tables, one_of, tuned_from

if TYPE_CHECKING:
    from nocturnal_kedro.training.cells import Cell, Grounds
    from nocturnal_kedro.training.data import Data

TITLE = "Does it hold for others?"
METHOD = (
    "A model is trained on the people of one group, and tested on the test nights of every group. "
    "Zero-shot: as it is, its bands included; few-shot and full: then fine-tuned on some days, or "
    "on all, of the group that it is tested on. What it is trained on has its own validation, and "
    "no other. Groups are sources, and sensors that read every 5 or every 15 minutes."
)
Shot = Literal["zero-shot", "few-shot", "full"]


class Options(BaseModel, extra="forbid", frozen=True):
    """How much of the group that is tested on a model may learn from."""

    shots: Annotated[Words, one_of("shot of transfer_learning", get_args(Shot))] = get_args(Shot)
    few_days: int = Field(default=7, ge=2)  # of each person, the last ones
    learning_rate: float | None = Field(default=None, gt=0)  # of tuning; the usual one where None


def plan(grounds: Grounds, options: Options) -> list[Cell]:
    """Every group to itself and to every other, and all sources but one to that one."""
    from nocturnal_kedro.training.cells import Cell, vary

    members, splits = _members(grounds), grounds.data.splits
    learnt = _learnt(members, grounds)

    def data_of(people: frozenset[str], days: int | None = None) -> Data:
        own = learn_from(splits, people)
        return vary(grounds.data, splits=own if days is None else most_days(own, days))

    whole = {group: data_of(people) for group, people in learnt.items()}
    few = {group: data_of(people, options.few_days) for group, people in members.items()}
    days = f"{options.few_days} days of"

    cells = grounds.baseline_cells()
    for model, given, seed, training in grounds.each_model():
        alone = partial(Cell, model=model, training=training, given=given, seed=seed)
        starts = {
            group: alone("zero-shot", group, data=whole[group], against=OWN_GROUP)
            for group in learnt
        }
        cells += starts.values()
        tuned = partial(alone, given=tuned_from(given, options.learning_rate))
        for target, people in members.items():
            to_target: dict[str, Any] = {"against": target, "tested_people": people}
            if "few-shot" in options.shots:
                cells.append(alone("few-shot", f"{days} {target}", data=few[target], **to_target))
            for start in _starts_for(target, members, learnt):
                from_start = {**to_target, "start": starts[start]}
                if "few-shot" in options.shots:
                    name = f"{start}, then {days} {target}"
                    cells.append(tuned("few-shot", name, data=few[target], **from_start))
                if "full" in options.shots:
                    name = f"{start}, then {target}"
                    cells.append(tuned("full", name, data=whole[target], **from_start))
    return cells


def groups(grounds: Grounds, options: Options) -> pd.DataFrame:
    """The test nights of each group."""
    origins = grounds.data.origins
    tested = origins[origins["split"].isin(TEST_SPLITS)][["source", "subject", "origin"]]
    names = tested["source"] + "/" + tested["subject"]
    return pd.concat(
        [
            tested[names.isin(people)].assign(group=group)
            for group, people in _members(grounds).items()
        ],
        ignore_index=True,
    )


def sections(tables: Tables) -> list[Section]:
    """Who learnt from whom, and what some days of one's own add."""
    from nocturnal_kedro.figures.sweeps import effects, matrix

    table = tables.summary
    groups = [group for group in table["group"].unique() if group != "all"]
    found = [
        Section(
            "Trained on, tested on",
            "RMSE on the test nights of each group (columns) of a model trained on the people of "
            "each (rows), with 95 % intervals over people and seeds.",
            matrix(table[table["question"] == "zero-shot"], groups),
        )
    ]
    tuned = table[table["question"].isin(("few-shot", "full"))]
    for group in groups:
        own = tuned[(tuned["group"] == group) & (tuned["against"] == group)]
        if len(own):
            found.append(
                Section(
                    f"To {group}",
                    f"RMSE on test nights of {group}, less that of a model trained on all that "
                    f"there is of {group}; bars are 95 % intervals over people and seeds.",
                    effects(own, group),
                )
            )
    return found


def _members(grounds: Grounds) -> dict[str, frozenset[str]]:
    """The people of each source, and of each kind of sensor where there are both."""
    people = grounds.data.corpus.people
    by_source = people["source"]
    by_sensor = "every " + (people["sampling_steps"] * STEP_MINUTES).astype(str) + " minutes"
    kinds = [by_source] if by_sensor.nunique() == 1 else [by_source, by_sensor]
    found = {
        str(group): frozenset(grounds.people[kind == group])
        for kind in kinds
        for group in sorted(kind.unique())
    }
    if len(found) < 2:
        raise InputError(
            f"there is one group of people alone, '{next(iter(found))}', and nobody to transfer "
            f'to. Give several sources: --params="sources=azt1d t1d_uom".'
        )
    return found


def _learnt(members: dict[str, frozenset[str]], grounds: Grounds) -> dict[str, frozenset[str]]:
    """The groups, everybody, and where there are three sources all but each of them."""
    everybody = frozenset(grounds.people)
    sources = sorted(grounds.data.corpus.people["source"].unique())
    learnt = dict(members)
    if len(sources) > 1:
        learnt["everybody"] = everybody
    if len(sources) > 2:
        learnt |= {f"all but {source}": everybody - members[source] for source in sources}
    return learnt


def _starts_for(
    target: str, members: dict[str, frozenset[str]], learnt: dict[str, frozenset[str]]
) -> list[str]:
    """What has learnt from none of the target's people."""
    return [start for start, people in learnt.items() if not people & members[target]]
