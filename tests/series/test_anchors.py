"""From when models are asked: anchors against their definitions, spelt out one slot at a time."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.outcomes import describe_nights
from nocturnal_kedro.series.audit import Audited, AuditOptions, audit_leaks
from nocturnal_kedro.series.corpus import CHANNELS, Corpus, build_corpus
from nocturnal_kedro.series.grid import GridOptions, grid_people, join_series, order_readings
from nocturnal_kedro.series.origins import (
    KEPT,
    Task,
    anchor_rows,
    build_origins,
    eligible_rows,
    origin_rows,
)
from nocturnal_kedro.series.overlap import find_overlaps, mark_readings
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import ORIGIN_TABLE, STEPS_PER_DAY
from nocturnal_kedro.series.splits import SplitOptions, build_splits
from nocturnal_kedro.sources import find_parts
from nocturnal_kedro.training.data import Data

CARBS, INSULIN = CHANNELS.index("carbs_g"), CHANNELS.index("insulin_u")
FIVE = timedelta(minutes=5)


class Person(NamedTuple):
    """A record of so many slots from `start` on, and what was logged by the number of the slot."""

    start: datetime
    slots: int
    carbs: dict[int, float]
    insulin: dict[int, float]

    def at(self, slot: int) -> datetime:
        return self.start + slot * FIVE


def corpus_of(*people: Person) -> Corpus:
    """People of source s named a, b, c; nothing is on record but what they logged."""
    last = np.cumsum([person.slots for person in people])
    first = last - [person.slots for person in people]
    values = np.zeros((last[-1], len(CHANNELS)), np.float32)
    for begin, person in zip(first, people, strict=True):
        for channel, logged in ((CARBS, person.carbs), (INSULIN, person.insulin)):
            for slot, amount in logged.items():
                values[begin + slot, channel] = amount
    times = [person.at(slot) for person in people for slot in range(person.slots)]
    return Corpus(
        values_TC=values,
        observed_TC=values > 0,
        late_T=np.zeros(last[-1], bool),
        covered_T=np.ones(last[-1], bool),
        slot_of_day_T=np.array([t.hour * 12 + t.minute // 5 for t in times], np.int16),
        people=pd.DataFrame(
            {
                "source": "s",
                "subject": list("abc")[: len(people)],
                "start": pd.DatetimeIndex([person.start for person in people]).as_unit("ns"),
                "first": first,
                "last": last,
                "sampling_steps": 1,
            }
        ),
        kernels_4K=np.zeros((4, 1), np.float32),
        made_from={},
    )


def times_of(corpus: Corpus, task: Task) -> list[tuple[str, str]]:
    """Whose and when the anchors are."""
    rows = anchor_rows(corpus, task)
    assert rows.dtype == np.int64
    people = corpus.people.iloc[corpus.person_of(rows)]
    at = people["start"].to_numpy() + (rows - people["first"].to_numpy()) * np.timedelta64(5, "m")
    return [
        (str(subject), f"{pd.Timestamp(time):%d %H:%M}")
        for subject, time in zip(people["subject"], at, strict=True)
    ]


def spelt_out(person: Person, task: Task) -> list[datetime]:
    """The anchors of one person, whose name has no bedtime."""
    times = {person.at(slot): slot for slot in range(person.slots)}
    if task.anchor == "midnight":
        return [time for time in times if (time.hour, time.minute) == (0, 0)]
    if task.anchor == "sliding":
        step = task.every_steps * 300
        begins, ends = task.sliding_hours or (0, 24)
        span = ends - begins if ends > begins else ends + 24 - begins
        return [
            time
            for time in times
            if (time - datetime(1970, 1, 1)).total_seconds() % step == 0
            and (time.hour + time.minute / 60 - begins) % 24 < span
        ]
    if task.anchor == "meal":
        return [
            time
            for time, slot in times.items()
            if person.carbs.get(slot, 0) >= task.meal_g
            and not any(person.carbs.get(slot - back, 0) > 0 for back in range(1, 13))
        ]
    found = []
    day = person.start.replace(hour=0, minute=0) - timedelta(days=1)
    while day <= person.at(person.slots):
        evening = [
            time
            for time, slot in times.items()
            if day.replace(hour=20) <= time < (day + timedelta(days=1)).replace(hour=2)
            and (person.carbs.get(slot, 0) > 0 or person.insulin.get(slot, 0) >= 1)
        ]
        found += [max(evening)] if evening else []
        day += timedelta(days=1)
    return found


@st.composite
def people(draw: st.DrawFn) -> Person:
    """With most entries in clusters, as meals come, of amounts on either side of each limit."""
    slots = draw(st.integers(1, 3 * STEPS_PER_DAY))
    start = datetime(2026, 3, 1) + draw(st.integers(0, 2 * STEPS_PER_DAY)) * FIVE
    near = st.integers(0, min(slots - 1, 40)) | st.integers(max(slots - 40, 0), slots - 1)
    when = near | st.integers(0, slots - 1)
    carbs = draw(st.dictionaries(when, st.sampled_from([0.5, 9.5, 10.0, 25.0]), max_size=20))
    insulin = draw(st.dictionaries(when, st.sampled_from([0.07, 0.9, 1.0, 6.5]), max_size=20))
    return Person(start, slots, carbs, insulin)


tasks = st.one_of(
    st.sampled_from([Task(), Task(anchor="bedtime"), Task(anchor="meal")]),
    st.builds(Task, anchor=st.just("meal"), meal_g=st.sampled_from([0.5, 20.0])),
    st.builds(
        Task,
        anchor=st.just("sliding"),
        every_steps=st.integers(1, 500),
        sliding_hours=st.none()
        | st.tuples(st.integers(0, 23), st.integers(0, 23)).filter(lambda span: len(set(span)) > 1),
    ),
)


@settings(max_examples=150)
@given(st.lists(people(), min_size=1, max_size=3), tasks)
def test_anchors_are_those_of_each_person_alone(cohort: list[Person], task: Task) -> None:
    """Neither the evening nor the hour before of anybody reaches into another's record."""
    corpus = corpus_of(*cohort)
    expected = [
        (name, f"{time:%d %H:%M}")
        for name, person in zip("abc", cohort, strict=False)
        for time in spelt_out(person, task)
    ]
    assert times_of(corpus, task) == expected


def test_bedtimes_of_a_person_of_a_source_and_by_what_was_logged() -> None:
    evening = datetime(2026, 3, 1, 18)
    # Slots from 18:00 on: 60 is 23:00, 84 is 01:00, 95 is 01:55, 96 is 02:00.
    night_owl = Person(evening, 300, {60: 20, 84: 5, 96: 30}, {72: 0.9, 95: 1.0})
    corpus = corpus_of(night_owl, Person(evening, 300, {}, {}), night_owl)
    by_log = Task(anchor="bedtime")
    assert times_of(corpus, by_log) == [("a", "02 01:55"), ("c", "02 01:55")]
    named = Task(anchor="bedtime", bedtimes={"s/a": "22:30", "s/b": "00:05"})
    assert times_of(corpus, named) == [("a", "01 22:30"), ("b", "02 00:05"), ("c", "02 01:55")]
    whole = Task(anchor="bedtime", bedtimes={"s/a": "21:15", "s": "23:00"})
    assert times_of(corpus, whole) == [("a", "01 21:15"), ("b", "01 23:00"), ("c", "01 23:00")]


def test_a_meal_is_what_comes_after_an_hour_without_carbs() -> None:
    noon = datetime(2026, 3, 1, 12)
    # 12:10 counts; 12:35 and 13:35 come within the hour of one before; 14:40 after 65 minutes.
    person = Person(noon, 60, {2: 30, 7: 12, 19: 40, 32: 10, 50: 9}, {})
    corpus = corpus_of(person, Person(noon + timedelta(days=1), 9, {0: 15, 8: 60}, {}))
    assert times_of(corpus, Task(anchor="meal")) == [
        ("a", "01 12:10"),
        ("a", "01 14:40"),
        ("b", "02 12:00"),  # what the person before ate is not hers
    ]
    assert times_of(corpus, Task(anchor="meal", meal_g=9)) == [
        ("a", "01 12:10"),
        ("a", "01 14:40"),
        ("a", "01 16:10"),
        ("b", "02 12:00"),
    ]


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Task(), "from midnight"),
        (Task(anchor="bedtime"), "from bedtime"),
        (Task(anchor="meal", meal_g=22.5), "from a meal with 22.5 g of carbs or more"),
        (Task(anchor="sliding", every_steps=6), "every 30 minutes"),
        (Task(anchor="sliding", sliding_hours=(21.5, 5)), "every 60 minutes from 21:30 to 05:00"),
    ],
)
def test_a_task_says_when(task: Task, told: str) -> None:
    assert task.when == told


def test_a_bedtime_of_nobody_is_an_error() -> None:
    corpus = corpus_of(Person(datetime(2026, 3, 1), 300, {}, {}))
    with pytest.raises(InputError, match=r"task.bedtimes 's/A'; known: s, s/a. Did you mean 's/a'"):
        anchor_rows(corpus, Task(anchor="bedtime", bedtimes={"s/A": "22:00"}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"meal_g": 20}, "'meal_g' is of anchor meal, and the anchor is midnight: leave it out"),
        ({"anchor": "meal", "every_steps": 6}, "'every_steps' is of anchor sliding"),
        ({"anchor": "sliding", "bedtimes": {"s": "22:00"}}, "'bedtimes' is of anchor bedtime"),
        ({"anchor": "bedtime", "sliding_hours": (21, 5)}, "'sliding_hours' is of anchor sliding"),
        ({"anchor": "sliding", "sliding_hours": (5, 5)}, "begin when they end"),
        ({"anchor": "sliding", "sliding_hours": (21, 25)}, "less than or equal to 24"),
        ({"anchor": "bedtime", "bedtimes": {"s": 1350}}, "in quotes, such as '22:30'"),
        ({"anchor": "bedtime", "bedtimes": {"s": "22:32"}}, "clock time of the 5-minute grid"),
        ({"anchor": "bedtime", "bedtimes": {"s": "24:00"}}, "clock time of the 5-minute grid"),
        ({"anchor": "noon"}, "task.anchor 'noon'; known: bedtime, meal, midnight, sliding"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Task(**options)


TASKS = [
    Task(),
    Task(anchor="bedtime", bedtimes={"invented/p1": "22:30"}),
    Task(anchor="meal", context_steps=288, horizon_steps=36),
    Task(anchor="sliding", every_steps=18, sliding_hours=(21, 5)),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.anchor)
def test_a_task_comes_back_from_its_record(task: Task) -> None:
    assert Task.model_validate(task.model_dump()) == task
    assert Task.model_validate_json(task.model_dump_json()) == task


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.anchor)
def test_training_windows_lie_around_an_anchor_of_the_same_person(
    task: Task, corpus: Corpus, splits: pd.DataFrame
) -> None:
    origins, tally = build_origins(corpus, splits, task)
    assert set(tally["reason"]) & set(KEPT) == {f"{task.unit}s kept"}
    assert tally["rows"].sum() == len(anchor_rows(corpus, task))
    data = Data(corpus, splits, origins, task)
    anchored = anchor_rows(corpus, task)
    all_rows = data.rows_around_anchor(12)
    hours = {"midnight": 3, "bedtime": 3, "meal": 0.5, "sliding": 0.5}[task.anchor]
    person, other = corpus.person_of(all_rows), corpus.person_of(anchored)
    apart = np.abs(all_rows[:, None] - anchored)
    near = ((apart <= 12 * hours) & (person[:, None] == other)).any(axis=1)
    np.testing.assert_array_equal(data.rows_around_anchor(), all_rows[near])
    assert 0 < near.sum() < len(near)


def test_nobody_is_trained_around_an_anchor_of_the_next_person(
    corpus: Corpus, splits: pd.DataFrame
) -> None:
    """A record ends 5 minutes before the midnight at which the next person's begins."""
    task = Task(anchor="sliding", every_steps=18, horizon_steps=1)
    whole = splits.groupby(["source", "subject"], as_index=False).agg(
        {"split": lambda _: "train", "start": "min", "end": "max"}
    )
    data = Data(corpus, whole, pd.DataFrame(), task)
    # The last anchor is at 22:30, and half an hour after it the last that may be trained on.
    to_the_end = corpus.people["last"].to_numpy()[:, None] - data.rows_around_anchor()
    assert to_the_end[to_the_end > 0].min() == 12


def test_no_anchor_at_all_says_where_they_come_from(splits: pd.DataFrame, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"no meals are in the data.*task.anchor"):
        build_origins(corpus, splits, Task(anchor="meal", meal_g=500))


def cohort_of(source: str, root: Path, options: dict[str, Any]) -> Audited:
    """All that is audited of a source, but for task and origins; raw readings of two people."""
    series, marks, raw = [], [], {}
    for part in find_parts([source], root, {source: options}):
        readings = part.read()
        ordered = order_readings(source, readings)
        series.append(grid_people(ordered, GridOptions())[0])
        marks.append(mark_readings(ordered))
        for subject in ordered.subjects[: 2 - len(raw)]:
            raw[source, subject] = readings.frame[readings.frame["subject"] == subject]
    joined = join_series(series)
    return Audited(
        series=joined,
        corpus=build_corpus(joined, Physiology()),
        splits=build_splits(joined, SplitOptions()),
        origins=pd.DataFrame(),
        overlaps=find_overlaps(pd.concat(marks, ignore_index=True)),
        raw=raw,
        task=Task(),
        physiology=Physiology(),
        grid=GridOptions(),
    )


@pytest.fixture(scope="module")
def simulated() -> Audited:
    return cohort_of("simulated", Path(), {"subjects": 8, "days": 14})


def ask(cohort: Audited, task: Task) -> pd.DataFrame:
    """What came of the origins of a task, that pass the leak audit."""
    corpus = cohort.corpus
    origins, _ = build_origins(corpus, cohort.splits, task)
    ORIGIN_TABLE.validate(origins)
    audit = audit_leaks(
        replace(cohort, task=task, origins=origins), AuditOptions(origins=48, train_windows=48)
    )
    assert audit["passed"].all(), audit.loc[~audit["passed"], "found"].to_list()
    assert (audit["examined"] > 0).all()
    nights = describe_nights(corpus, origins, task)
    assert nights[list(origins)].equals(origins)
    rows = origin_rows(corpus, origins)
    assert np.isin(rows, anchor_rows(corpus, task)).all()
    for split in origins["split"].unique():
        own = rows[origins["split"] == split]
        assert np.isin(own, eligible_rows(corpus, cohort.splits, task, split)).all()
    at = rows[:, None] + np.arange(1, 1 + task.horizon_steps)
    glucose = np.where(corpus.observed_TC[at, 0], corpus.values_TC[at, 0], np.nan)
    np.testing.assert_array_equal(nights["lowest_mg_dl"], np.nanmin(glucose, axis=1))
    return nights


@pytest.mark.parametrize("anchor", ["midnight", "bedtime", "meal", "sliding"])
def test_a_simulated_cohort_is_asked_from_every_anchor(anchor: str, simulated: Audited) -> None:
    options = {"bedtimes": {"simulated/sim-001": "22:30"}} if anchor == "bedtime" else {}
    hours = {"sliding_hours": (21, 5)} if anchor == "sliding" else {}
    short = {"context_steps": 288, "horizon_steps": 36} if anchor == "meal" else {}
    nights = ask(simulated, Task(anchor=anchor, **options, **hours, **short))
    clock = nights["origin"].dt.hour + nights["origin"].dt.minute / 60
    people = nights.groupby("subject")["origin"]
    if anchor == "midnight":
        assert (clock == 0).all()
    if anchor == "bedtime":
        assert set(clock[nights["subject"] == "sim-001"]) == {22.5}
        assert ((clock >= 20) | (clock < 2)).all()
        assert people.diff().dropna().min() > pd.Timedelta(hours=18)
    if anchor == "meal":
        assert (nights["meal_g"] >= 10).all()
        assert people.diff().dropna().min() > pd.Timedelta(hours=1)
    if anchor == "sliding":
        assert set(clock) == {0, 1, 2, 3, 4, 21, 22, 23}
        assert (nights["meal_g"] == 0).any()


# Eligible origins of datasets beside the project.
COUNTS = {
    "azt1d": {"midnight": 971, "bedtime": 390, "meal": 2750},
    "t1d_uom": {"midnight": 1295, "bedtime": 616, "meal": 2692},
}


@pytest.mark.slow
@pytest.mark.parametrize("source", COUNTS)
def test_real_people_are_asked_from_every_anchor(source: str, raw_root: Path) -> None:
    cohort = cohort_of(source, raw_root, {})
    series = cohort.series.assign(insulin=lambda s: s["basal_u_h"] / 12 + s["bolus_u"])
    meal = series[series["carbs_g"] > 0]
    alone = ~(meal.groupby("subject", observed=True)["time"].diff() <= pd.Timedelta(hours=1))
    dose = (series["insulin"] >= 1) & ~series["insulin_flagged"]
    logged = series[(series["carbs_g"] > 0) | dose]
    since_8 = logged["time"] - pd.Timedelta(hours=20)
    evenings = logged.assign(day=since_8.dt.date)[since_8.dt.hour < 6]
    anchors = {
        "midnight": (series["time"].dt.strftime("%H:%M") == "00:00").sum(),
        "bedtime": len(evenings.drop_duplicates(["subject", "day"])),
        "meal": (alone & (meal["carbs_g"] >= 10)).sum(),
    }
    for anchor, expected in COUNTS[source].items():
        short = {"context_steps": 288, "horizon_steps": 36} if anchor == "meal" else {}
        task = Task(anchor=anchor, **short)
        assert len(anchor_rows(cohort.corpus, task)) == anchors[anchor]
        assert len(ask(cohort, task)) == pytest.approx(expected, rel=0.02)
    named = Task(anchor="bedtime", bedtimes={source: "23:00"})
    assert set(ask(cohort, named)["origin"].dt.strftime("%H:%M")) == {"23:00"}
