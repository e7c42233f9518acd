"""Lynch 2022: 343 people on the insulin-only bionic pancreas (IOBP2), a row per 5-minute step.

Each row holds the sensor's reading at its time and the insulin of the step before it. The reader
puts that insulin 5 minutes back, on a row of its own. Units are conserved: insulin in a row without
a reading counts as any other, doses of one time are added up, and a step that was shorter than 5
minutes has a higher rate. Faults mended, each counted: -1 where nothing was measured, a dose that
stands twice at one time, midnight written without a clock time. `MealSize` is a word and no grams,
so carbs are missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from nocturnal_kedro.series.schema import (
    PLAUSIBLE,
    STEP_MINUTES,
    Counted,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._large import (
    NUMBER,
    TEXT,
    WORD,
    column_names,
    each,
    parsed,
    read_large_table,
)
from nocturnal_kedro.sources._raw import RawTable, require_files

TITLE = (
    "the Insulin-Only Bionic Pancreas trial (IOBP2), Lynch et al., Diabetes Technol Ther 2022, "
    "doi:10.1089/dia.2022.0341 (JAEB Center for Health Research, public datasets: "
    "'IOBP2 RCT Public Dataset')"
)
FILE = "lynch_2022/Data Tables/IOBP2DeviceiLet.txt"

COLUMNS = {
    "PtID": WORD,
    "DeviceDtTm": TEXT,
    "CGMVal": NUMBER,
    "BasalDelivPrev": NUMBER,
    "BolusDelivPrev": NUMBER,
    "MealBolusDelivPrev": NUMBER,
}
MEAL_WORD = "MealSize"  # noted where it is there

# A day and a clock time, split at the first space; a day alone is midnight.
DAYS = ("%m/%d/%Y", "%Y-%m-%d")
CLOCKS = ("%I:%M:%S %p", "%H:%M:%S", "%I:%M %p", "%H:%M", "%H:%M:%S.%f")


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose: the table says all."""


def find(root: Path, options: Options) -> list[Files]:
    """The one table of the pump, all people in it; raises `InputError` where it is absent."""
    return [(file,) for file in require_files("lynch_2022", root, FILE, TITLE)]


def read(files: Files, options: Options) -> Readings:
    """Read the pump's table; raises `InputError` on a missing column or an unreadable cell."""
    [path] = files
    meal_word = {MEAL_WORD: WORD} if MEAL_WORD in column_names("lynch_2022", path, TITLE) else {}
    steps, entries = _steps(read_large_table("lynch_2022", path, COLUMNS | meal_word, TITLE))
    insulin, repeated, added_up, more = _insulin(steps)
    entries += more

    has_glucose = steps["glucose"].notna().to_numpy()
    own_row = np.zeros(len(steps), dtype=bool)
    own_row[insulin.index] = True
    shared = repeated | added_up
    for rows, effect, reason in (
        (has_glucose & own_row, "added", "insulin of the step before, on a row 5 minutes earlier"),
        (has_glucose & repeated, "changed", "dose repeated at one time, taken once"),
        (~has_glucose & repeated, "dropped", "dose repeated at one time, taken once"),
        (has_glucose & added_up, "changed", "dose added to another at the same time"),
        (~has_glucose & added_up, "dropped", "dose added to another at the same time"),
        (~has_glucose & ~own_row & ~shared, "dropped", "rows with neither glucose nor insulin"),
    ):
        entries += each(steps["subject"].array, rows, effect, reason)

    glucose = steps[has_glucose]
    frame = readings_frame(
        {
            "subject": pd.concat([glucose["subject"], insulin["subject"]]),
            "time": pd.concat([glucose["time"], insulin["time"]]),
            "glucose_mg_dl": np.concatenate([glucose["glucose"], np.full(len(insulin), np.nan)]),
            **{
                name: np.concatenate([np.full(len(glucose), np.nan), insulin[name]])
                for name in ("basal_u_h", "basal_minutes", "bolus_u")
            },
        }
    )
    return Readings(frame, make_tally("read", entries))


def _steps(table: RawTable) -> tuple[pd.DataFrame, list[Counted]]:
    """The rows of the table that name a person and a time, as numbers; the others are counted."""
    people = table.frame["PtID"].array
    steps = pd.DataFrame(
        {
            "subject": people,
            "time": _times(table),
            "glucose": table.glucose("CGMVal"),
            "basal": table.numbers("BasalDelivPrev"),
            "bolus": table.numbers("BolusDelivPrev"),
            "meal_bolus": table.numbers("MealBolusDelivPrev"),
        }
    )
    nobody = people.codes < 0
    untimed = steps["time"].isna().to_numpy() & ~nobody
    entries = [
        *each(people, np.full(len(people), True), "in", "rows of the pump's table"),
        *each(people, nobody, "dropped", "rows that name no person"),
        *each(people, untimed, "dropped", "rows without a time"),
    ]
    if MEAL_WORD in table.frame:
        meals = table.frame[MEAL_WORD].notna().to_numpy()
        entries += each(people, meals, "noted", "meals announced by a word, not in grams: no carbs")
    for name in ("glucose", "basal", "bolus", "meal_bolus"):  # -1 where nothing was measured
        none = (steps[name] < 0).to_numpy()
        entries += each(people, none & ~nobody & ~untimed, "changed", f"{name} below 0, missing")
        steps[name] = steps[name].mask(none)
    return steps[~nobody & ~untimed].reset_index(drop=True), entries


def _insulin(
    steps: pd.DataFrame,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, list[Counted]]:
    """Rate and bolus of each step at its begin; which of `steps` repeat one or are added to one.

    A rate stands until the next record, at most 5 minutes. So that all units are given in that
    time, doses of one time are added up and a shorter step has a higher rate.
    """
    key = ["subject", "time"]
    bolus = steps["bolus"].fillna(0) + steps["meal_bolus"].fillna(0)
    given = steps[key].assign(basal=steps["basal"], bolus=bolus, meal=steps["meal_bolus"])
    # A bolus of 0 is no entry, while a basal of 0 is a pump that gave nothing.
    given = given[given["basal"].notna() | (given["bolus"] > 0)].sort_values(key, kind="stable")

    crowd = given[given.duplicated(key, keep=False)]
    repeats = crowd.index[crowd.duplicated(keep="last")]
    given = given.drop(index=repeats)
    last = ~given.duplicated(key, keep="last")
    group = np.cumsum(last) - last  # the number of the dose that a row belongs to
    repeated, added_up = np.zeros((2, len(steps)), dtype=bool)
    repeated[repeats] = True
    added_up[given.index[~last]] = True

    insulin = given.loc[last, key]
    insulin["time"] -= pd.Timedelta(minutes=STEP_MINUTES)
    recorded = np.bincount(group, weights=given["basal"].notna()) > 0
    basal = np.bincount(group, weights=given["basal"].fillna(0))
    bolus = np.bincount(group, weights=given["bolus"])
    minutes = _until_next(insulin)
    rate = basal * 60 / minutes
    # Records within seconds of each other, as after the clock was set, tell no rate of a pump.
    abrupt = rate > PLAUSIBLE["basal_u_h"][1]
    bolus = bolus + np.where(abrupt, basal, 0)
    insulin["basal_u_h"] = np.where(recorded, np.where(abrupt, 0, rate), np.nan)
    insulin["basal_minutes"] = np.where(recorded, minutes, np.nan)
    insulin["bolus_u"] = np.where(bolus > 0, bolus, np.nan)

    short = (minutes < STEP_MINUTES) & (basal > 0)
    entries: list[Counted] = []
    for rows, reason in (
        (short & ~abrupt, "basal of a step under 5 minutes, rate raised to keep its units"),
        (abrupt, "basal of a step of seconds, told as a bolus to keep its units"),
    ):
        entries += each(insulin["subject"].array, rows, "changed", reason)
    return insulin, repeated, added_up, entries


def _until_next(records: pd.DataFrame) -> np.ndarray:
    """Minutes from each record to the person's next, at most one step."""
    gap = -records["time"].diff(-1).dt.total_seconds() / 60
    same_person = records["subject"].cat.codes.diff(-1) == 0
    return gap.where(same_person, STEP_MINUTES).clip(upper=STEP_MINUTES).to_numpy()


def _times(table: RawTable) -> np.ndarray:
    """Times of millions of rows: days and clock times are few, so each is parsed once."""
    cells = pa.table(table.frame[["DeviceDtTm"]])["DeviceDtTm"].combine_chunks()
    halves = pc.split_pattern(  # at the first space, one of which every cell then has
        pc.binary_join_element_wise(pc.utf8_trim_whitespace(cells), "", " "), " ", max_splits=1
    )
    days, clocks = (pc.utf8_trim_whitespace(pc.list_element(halves, half)) for half in (0, 1))
    day = _parsed(days, DAYS)
    clock = _parsed(pc.if_else(pc.equal(clocks, ""), "00:00:00", clocks), CLOCKS)
    times = day + (clock - clock.astype("datetime64[D]"))
    if (np.isnat(times) & table.frame["DeviceDtTm"].notna().to_numpy()).any():  # names the cell
        both = (f"{day} {clock}" for day in DAYS for clock in CLOCKS)
        return table.times("DeviceDtTm", *both, *DAYS).to_numpy()
    return times


def _parsed(texts: pa.Array, forms: tuple[str, ...]) -> np.ndarray:
    """Times of texts of which many are equal; NaT where none of `forms` fits."""
    words = texts.dictionary_encode()
    codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return parsed(words.dictionary.to_pylist(), codes, forms)
