"""Aleppo 2017 (REPLACE-BG): 226 adults on insulin pumps, six months each, CGM every 5 minutes.

Four tables hold all people: readings (nearly 15 million rows), basal rates, boluses and the carbs
of the bolus calculator. The publisher gives days since enrolment and the local time of day. Day 0
becomes 2020-01-01, so weekdays and seasons mean nothing. What this reader mends, each counted in
the tally: records before enrolment, calibrations among the readings, suspensions without a rate,
rates said to stand for months, extended boluses, doses that stand twice, carbs in milligrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    STEP_MINUTES,
    Counted,
    Readings,
    make_tally,
    readings_frame,
)
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._large import (
    NUMBER,
    WORD,
    column_names,
    each,
    one_below_the_other,
    parsed,
    read_large_table,
    rows_of,
    rows_of_a_person,
)
from nocturnal_kedro.sources._raw import RawTable, require_files

TITLE = (
    "Aleppo et al., Diabetes Care 2017, doi:10.2337/dc16-2482 (REPLACE-BG), a registered download "
    "of the JAEB Center for Health Research, public datasets"
)
FOLDER = "aleppo_2017/Data Tables"
CGM, BOLUS, WIZARD = "HDeviceCGM.txt", "HDeviceBolus.txt", "HDeviceWizard.txt"
BASAL = "HDeviceBasal.txt"

DAY, CLOCK = "DeviceDtTmDaysFromEnroll", "DeviceTm"
ENROLLED = np.datetime64("2020-01-01", "ns")  # day 0 of everyone; the publisher gives no date
CLOCK_FORMS = ("%H:%M:%S", "%I:%M:%S %p", "%H:%M", "%I:%M %p")
MS_PER_MINUTE = 60_000.0
MILLIGRAMS_FROM = 1000.0  # nobody eats so many grams at the median meal


class Options(BaseModel, extra="forbid", frozen=True):
    """What counts as usable insulin; the defaults hold for the published files."""

    # False: the download holds no HDeviceBasal.txt, as some releases do; all basal is missing.
    basal: bool = True
    # Hours. Durations of up to months are written over gaps in a log; a schedule repeats daily.
    basal_longest_hours: float = Field(default=24.0, gt=0, le=48)
    # Hours. Pumps extend a bolus over no more; longer is an error, and all is given at its time.
    extended_longest_hours: float = Field(default=8.0, gt=0, le=24)


def find(root: Path, options: Options) -> list[Files]:
    """The tables, which hold all people; raises `InputError` where one is absent."""
    files = [
        require_files("aleppo_2017", root, f"{FOLDER}/{name}", TITLE)[0]
        for name in (CGM, BOLUS, WIZARD)
    ]
    if not options.basal:
        return [tuple(files)]
    basal = root / FOLDER / BASAL
    if not basal.is_file():
        raise InputError(
            f"source 'aleppo_2017': no '{FOLDER}/{BASAL}' under '{root}'. Some releases of {TITLE} "
            f"lack it. Get another, or leave all basal missing: "
            f'--params="sources=aleppo_2017,source_options.aleppo_2017.basal=false".'
        )
    return [(*files, basal)]


def read(files: Files, options: Options) -> Readings:
    """Read all people; raises `InputError` on a missing column or an unreadable cell."""
    cgm, bolus, wizard, *basal = files
    entries: list[Counted] = []
    tables = [
        _glucose(cgm, entries),
        *_boluses(bolus, options, entries),
        _carbs(wizard, entries),
        *(_basal(path, options, entries) for path in basal),
    ]
    return Readings(readings_frame(one_below_the_other(tables)), make_tally("read", entries))


def _glucose(path: Path, entries: list[Counted]) -> dict[str, Any]:
    table = _table(path, {"RecordType": WORD, "GlucoseValue": NUMBER}, entries)
    people, kinds = table.frame["PtID"].array, table.frame["RecordType"].array
    is_cgm = kinds.categories.str.strip().str.upper() == "CGM"
    reading = np.append(is_cgm, False)[kinds.codes].astype(bool)  # no kind: no reading
    entries += each(people, ~reading, "dropped", "calibrations and other records without CGM")
    table = rows_of(table, reading)
    return {
        "subject": np.asarray(table.frame["PtID"].array, dtype=object),
        "time": _times(table),
        "glucose_mg_dl": table.glucose("GlucoseValue"),
    }


def _basal(path: Path, options: Options, entries: list[Counted]) -> dict[str, Any]:
    types = {"RecID": NUMBER, "BasalType": WORD, "Rate": NUMBER, "Duration": NUMBER}
    table = _table(path, types, entries)
    # Of several rates at one time the grid keeps the last: let that be the newest record.
    order = np.argsort(table.numbers("RecID"), kind="stable")
    table = RawTable(table.source, path, table.frame.iloc[order])
    people, times = table.frame["PtID"].array, _times(table)
    rate, minutes = table.numbers("Rate"), table.numbers("Duration") / MS_PER_MINUTE
    if (minutes > 0).any() and np.median(minutes[minutes > 0]) < 1:
        raise InputError(
            f"{table.where('Duration')}: half of the rates stand for less than a minute; "
            f"milliseconds are expected. Use the file as published: {TITLE}."
        )

    def count(rows: np.ndarray, effect: str, reason: str) -> None:
        entries.extend(each(people, rows, effect, reason))

    # SuprRate is what was suppressed, not what was delivered: it is never read.
    suspended = table.frame["BasalType"].str.strip().str.lower().eq("suspend").to_numpy(bool)
    count(suspended & (rate != 0), "changed", "suspensions written without rate 0, set to 0 U/h")
    rate = np.where(suspended, 0.0, rate)
    count(np.isnan(rate), "noted", "basal records without a rate")

    longest = 60 * options.basal_longest_hours
    never, endless = minutes <= 0, np.isnan(minutes)
    count(never & ~np.isnan(rate), "changed", "basal that stands for no time, set missing")
    count(endless, "noted", "basal without a duration, until the next record")
    count(minutes > longest, "changed", f"basal said to stand over {longest / 60:g} h, cut")
    rate = np.where(never, np.nan, rate)
    # A record without a usable rate stands too: the rate before it is over.
    stands = np.where(endless | never, longest, np.minimum(minutes, longest))

    known = pd.DataFrame({"person": people.codes, "time": times})[~np.isnan(rate)]
    older = np.zeros(len(rate), bool)
    older[known.index] = known.duplicated(keep="last")
    count(older, "noted", "basal at a time with a newer record, which stands")
    return {
        "subject": np.asarray(people, dtype=object),
        "time": times,
        "basal_u_h": rate,
        "basal_minutes": stands,
    }


def _boluses(path: Path, options: Options, entries: list[Counted]) -> list[dict[str, Any]]:
    """One row per record, and the rows by which extended parts are delivered over their time."""
    types = {"Normal": NUMBER, "Extended": NUMBER, "Duration": NUMBER}
    if "Duration" not in column_names("aleppo_2017", path, TITLE):  # not every release has it
        del types["Duration"]
    table, times = _given_once(_table(path, types, entries), ["Normal", "Extended"], entries)
    people = table.frame["PtID"].array
    normal, extended = table.numbers("Normal"), table.numbers("Extended")
    minutes = np.full(len(normal), np.nan)
    if "Duration" in types:  # of the extended part alone
        minutes = table.numbers("Duration") / MS_PER_MINUTE

    longest = 60 * options.extended_longest_hours
    some = np.nan_to_num(extended) != 0
    later = some & (minutes > 0) & (minutes <= longest)
    at_once = some & ~later
    reason = f"extended boluses without a duration up to {longest / 60:g} h, given at their time"
    entries += each(people, at_once, "noted", reason)
    now = np.nan_to_num(normal) + np.where(at_once, extended, 0.0)

    row, after, share = _portions(np.where(later, minutes, 0.0))
    reason = "5-minute parts of extended boluses"
    entries += each(people[row], np.full(len(row), True), "added", reason)
    subjects = np.asarray(people, dtype=object)
    return [
        {"subject": subjects, "time": times, "bolus_u": np.where(now == 0, np.nan, now)},
        {
            "subject": subjects[row],
            "time": times[row] + (after * 60e9).astype("timedelta64[ns]"),
            "bolus_u": extended[row] * share,
        },
    ]


def _portions(minutes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each dose spread over `minutes`: its row, minutes until a part is in, the part's share.

    A part counts when it is in: no slot holds insulin that flows after it.
    """
    parts = np.ceil(minutes / STEP_MINUTES).astype(np.int64)
    row = np.repeat(np.arange(len(minutes)), parts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
    total = minutes[row]
    until = np.minimum((number + 1) * STEP_MINUTES, total)
    return row, until, (until - number * STEP_MINUTES) / total


def _carbs(path: Path, entries: list[Counted]) -> dict[str, Any]:
    table = _table(path, {"CarbInput": NUMBER}, entries)
    table, times = _given_once(table, ["CarbInput"], entries)
    people, carbs = table.frame["PtID"].array, table.numbers("CarbInput")
    carbs = np.where(carbs == 0, np.nan, carbs)  # the calculator was asked for a correction
    eaten = ~np.isnan(carbs)
    entries += each(people, ~eaten, "noted", f"rows in {path.name} without carbs")
    if eaten.any() and np.median(carbs[eaten]) > MILLIGRAMS_FROM:
        reason = "carbs inferred to be milligrams, divided by 1000"
        entries += each(people, eaten, "changed", reason)
        carbs = carbs / 1000
    return {"subject": np.asarray(people, dtype=object), "time": times, "carbs_g": carbs}


def _given_once(
    table: RawTable, amounts: list[str], entries: list[Counted]
) -> tuple[RawTable, np.ndarray]:
    """The table without repeated doses, and its times; uploads of one device may overlap."""
    people, times = table.frame["PtID"].array, _times(table)
    doses = {name: table.numbers(name) for name in amounts}
    given = pd.DataFrame({"person": people.codes, "time": times, **doses})
    repeated = given.duplicated().to_numpy(bool)
    reason = f"rows in {table.path.name} repeated at one time"
    entries += each(people, repeated, "dropped", reason)
    return rows_of(table, ~repeated), times[~repeated]


def _table(path: Path, types: Mapping[str, pa.DataType], entries: list[Counted]) -> RawTable:
    """Columns of a table from the day of enrolment on."""
    names = column_names("aleppo_2017", path, TITLE)
    person = "PtId" if "PtId" in names else "PtID"  # the wizard's table writes it so
    columns = {person: WORD, DAY: NUMBER, CLOCK: WORD, **types}
    table = read_large_table("aleppo_2017", path, columns, TITLE)
    table = RawTable(table.source, path, table.frame.rename(columns={person: "PtID"}, copy=False))
    table = rows_of_a_person(table, entries)
    early = table.numbers(DAY) < 0
    reason = f"rows in {path.name} before enrolment"
    entries += each(table.frame["PtID"].array, early, "dropped", reason)
    return rows_of(table, ~early)


def _times(table: RawTable) -> np.ndarray:
    """Naive local times, NaT where day or time of day is empty; `InputError` names what is none."""
    clocks = table.frame[CLOCK].array
    clock = parsed(clocks.categories, clocks.codes, CLOCK_FORMS)
    unread = np.isnat(clock) & (clocks.codes >= 0)
    if unread.any():
        clock[unread] = rows_of(table, unread).times(CLOCK, *CLOCK_FORMS).to_numpy()
    days = table.numbers(DAY).astype("timedelta64[D]")
    return ENROLLED + days + (clock - clock.astype("datetime64[D]"))
