"""Nightscout exports: a folder a person, `entries.json` and, if at hand, `treatments.json`.

The format knows moments in UTC and says apart how far a phone was ahead of it, which old exports
leave out or write as 0: then the option `zone` says where the person lives. What the reader
mends, each counted in the tally: entries and treatments uploaded twice, codes of a sensor's
errors among the readings, finger sticks, insulin of a temporary basal that its rate tells too.

Basal is known only while a temporary rate runs, since the profile is no part of these exports;
outside it is missing, not zero, unless the option `scheduled_basal_u_h` tells the schedule.

[1] Nightscout, cgm-remote-monitor, lib/plugins/errorcodes.js: below 39 stands a code, no glucose.
[2] There, lib/profilefunctions.js: a `percent` of -30 is 70 % of the scheduled rate; a percent of
    0 is not stored, so that a temporary basal without a rate runs as scheduled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Counted, Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._clock import (
    Clock,
    Times,
    cut,
    iso_times,
    moments,
    offset_clock,
    to_local,
    zone_clock,
)
from nocturnal_kedro.sources._raw import RawTable, require_files

TITLE = (
    "Nightscout exports: the answers of your site's /api/v1/entries.json and "
    "/api/v1/treatments.json, or mongoexport --jsonArray of these collections"
)
FOLDER = "nightscout"

LOWEST_SGV = 39  # mg/dL, "low"; below stand codes [1]
SUSPENDED_MINUTES = 240.0  # how long a suspension without an end is believed
FIRST_MS = 946_684_800_000  # the year 2000; earlier dates are not in milliseconds
FARTHEST_MINUTES = 14 * 60  # no clock is farther from UTC

ClockTime = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Schedule = Annotated[
    tuple[tuple[ClockTime, Annotated[float, Field(ge=0)]], ...], Field(min_length=1)
]

ENTRY_FIELDS = ("_id", "type", "sgv", "date", "dateString", "utcOffset")
TREATMENT_NUMBERS = (
    "insulin", "enteredinsulin", "carbs", "absolute", "rate", "percent", "duration",
)  # fmt: skip
TREATMENT_FIELDS = (
    "_id", "eventType", "created_at", "timestamp", "mills", "date", "isEmulatingTempBasal",
    *TREATMENT_NUMBERS,
)  # fmt: skip


class Options(BaseModel, extra="forbid", frozen=True):
    """What the exports do not tell; each for everybody, or by person (the folder's name)."""

    zone: str | dict[str, str] | None = None  # IANA; goes before each entry's utcOffset
    # [[time of day, U/h], ...]: what the pump gives while no temporary rate runs
    scheduled_basal_u_h: Schedule | dict[str, Schedule] | None = None


def find(root: Path, options: Options) -> list[Files]:
    """Each person's files; raises `InputError` where there is none, or an option names nobody."""
    entries = require_files("nightscout", root, f"{FOLDER}/*/entries.json", TITLE)
    people = [file.parent.name for file in entries]
    for name in ("zone", "scheduled_basal_u_h"):
        given = getattr(options, name)
        unknown = sorted(set(given) - set(people)) if isinstance(given, dict) else []
        if unknown:
            raise InputError(
                f"source 'nightscout', option '{name}': nobody is called '{unknown[0]}'; folders "
                f"of people: {', '.join(people)}."
            )
    both = [(file, file.with_name("treatments.json")) for file in entries]
    return [tuple(file for file in files if file.is_file()) for files in both]


def read(files: Files, options: Options) -> Readings:
    """Read one person; raises `InputError` on a file that is no export or a time without a zone."""
    subject = files[0].parent.name
    entries = _load(files[0], ENTRY_FIELDS)
    uploaded = _load(files[1], TREATMENT_FIELDS) if len(files) > 1 else None

    counted: list[Counted] = []
    told_at, glucose = _glucose(entries, subject, counted)
    treatments = _treatments(uploaded, subject, counted) if uploaded is not None else None
    done_at = treatments["time"].to_numpy() if treatments is not None else told_at[:0]
    clock = _clock(entries, subject, options.zone, done_at)

    parts = [pd.DataFrame({"time": told_at, "glucose_mg_dl": glucose})]
    if treatments is not None:
        schedule = _of_person(options.scheduled_basal_u_h, subject)
        parts += _insulin_and_carbs(treatments, told_at, schedule, clock, subject, counted)
    else:
        counted.append((subject, "noted", "no treatments.json: insulin and carbs missing", 1))
    columns = pd.concat(parts, ignore_index=True)
    frame = readings_frame({"subject": np.full(len(columns), subject), **columns})
    frame, on_the_way = to_local(frame, {subject: clock})
    return Readings(frame, make_tally("read", [*counted, *on_the_way]))


def _load(path: Path, fields: tuple[str, ...]) -> RawTable:
    """A JSON array of objects as a table of the fields that are read; a lacking one is empty."""
    try:
        objects = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"source 'nightscout', file '{path}': {error}. The file is cut short or no JSON "
            f"array. Export it again: {TITLE}."
        ) from error
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise InputError(
            f"source 'nightscout', file '{path}': no JSON array of objects. Export it again: "
            f"{TITLE}."
        )
    # RawTable counts a header line, which JSON lacks: its row N is then the N-th object.
    frame = pd.DataFrame(index=pd.RangeIndex(-1, len(objects) - 1))
    for field in fields:
        cells = pd.Series([each.get(field) for each in objects], index=frame.index)
        if not pd.api.types.is_numeric_dtype(cells):  # some uploaders mix text and numbers
            cells = cells.astype("string").astype(object)
        frame[field] = cells
    return RawTable("nightscout", path, frame)


def _glucose(
    table: RawTable, subject: str, counted: list[Counted]
) -> tuple[Times, NDArray[np.float64]]:
    """Times (UTC) and glucose in mg/dL of the sensor's readings."""
    kind = table.frame["type"].where(table.frame["type"].notna() | table.frame["sgv"].isna(), "sgv")
    counted.append((subject, "in", "entries", len(kind)))
    for name, number in kind[kind != "sgv"].fillna("untyped").astype(str).value_counts().items():
        what = "finger sticks (mbg)" if name == "mbg" else f"entries that are no reading ({name})"
        counted.append((subject, "dropped", what, int(number)))
    table = replace(table, frame=table.frame[kind == "sgv"])
    if table.frame.empty:
        raise InputError(
            f"source 'nightscout', file '{table.path}': no entry of the type sgv, a sensor's "
            f"reading. Export the collection 'entries' whole: {TITLE}."
        )

    time, glucose = _entry_times(table), table.glucose("sgv")
    twice = _repeated_ids(table) | pd.DataFrame({"t": time, "g": glucose}).duplicated().to_numpy()
    code = ~twice & (glucose < LOWEST_SGV)
    counted.append((subject, "dropped", "entries uploaded twice", int(twice.sum())))
    counted.append((subject, "dropped", "codes of sensor errors (sgv below 39)", int(code.sum())))
    kept = ~twice & ~code
    return time[kept], glucose[kept]


def _entry_times(table: RawTable) -> Times:
    """`date` in milliseconds; where it is absent, `dateString`."""
    time = _milliseconds(table, "date")
    return np.where(np.isnat(time), moments(*iso_times(table, "dateString")), time)


def _milliseconds(table: RawTable, column: str) -> Times:
    """A column of milliseconds since 1970; raises `InputError` where they are seconds."""
    milliseconds = table.numbers(column)
    wrong = milliseconds < FIRST_MS
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{table.where(column)}, row {table.frame.index[row] + 2}: {milliseconds[row]:.0f} as "
            f"milliseconds since 1970 lies before 2000 ({int(wrong.sum())} such cells). Correct "
            f"these; seconds times 1000 are milliseconds."
        )
    return pd.to_datetime(pd.Series(milliseconds).round(), unit="ms").to_numpy("datetime64[ns]")


def _clock(
    entries: RawTable, subject: str, zone: str | dict[str, str] | None, done_at: Times
) -> Clock:
    """The person's clock, by the option `zone` or else by every entry's utcOffset."""
    named, time = _of_person(zone, subject), _entry_times(entries)
    utc = np.concatenate([time, done_at])
    if named is not None:
        return zone_clock(f"source 'nightscout', option 'zone', person '{subject}'", named, utc)
    minutes = entries.numbers("utcOffset")
    where = entries.where("utcOffset")
    remedy = (
        f"Give the option zone, the IANA name of the place that '{subject}' lives in, like "
        f"'Europe/London' ('UTC' if it is that)."
    )
    told = ~np.isnan(minutes)
    if not np.any(minutes[told]):  # an old export, or a phone that hides where it is
        raise InputError(f"{where}: absent or 0 in every entry. {remedy}")
    if np.abs(minutes[told]).max() > FARTHEST_MINUTES:
        raise InputError(f"{where}: more than {FARTHEST_MINUTES} minutes from UTC. {remedy}")
    clock = offset_clock(utc, np.append(minutes, np.full(len(done_at), np.nan)))
    days = (pd.Series(time).max() - pd.Series(time).min()) / pd.Timedelta(days=1)
    if len(clock.changes) > max(10, days / 7):
        raise InputError(
            f"{where}: it changes {len(clock.changes)} times in {days:.0f} days, as if several "
            f"uploaders disagreed. {remedy}"
        )
    return clock


def _treatments(table: RawTable, subject: str, counted: list[Counted]) -> pd.DataFrame:
    """Treatments that stand once: their moments (UTC), what they are called, their numbers."""
    raw = table.frame
    counted.append((subject, "in", "treatments", len(raw)))
    columns: dict[str, Any] = {"time": _treatment_times(table, subject, counted)}
    columns["event"] = raw["eventType"].fillna("").astype(str).str.strip().to_numpy()
    columns["emulates"] = raw["isEmulatingTempBasal"].astype(str).eq("True").to_numpy()
    columns |= {name: table.numbers(name) for name in TREATMENT_NUMBERS}
    treatments = pd.DataFrame(columns)
    twice = _repeated_ids(table) | treatments.duplicated().to_numpy()
    counted.append((subject, "dropped", "treatments uploaded twice", int(twice.sum())))
    return treatments[~twice].reset_index(drop=True)


def _treatment_times(table: RawTable, subject: str, counted: list[Counted]) -> Times:
    """`created_at`, else `timestamp` (text, or milliseconds), else `mills`, else `date`."""
    raw = table.frame
    is_number = pd.to_numeric(raw["timestamp"], errors="coerce").notna()
    texts = replace(table, frame=raw.assign(timestamp=raw["timestamp"].mask(is_number)))
    numbers = replace(table, frame=raw.assign(timestamp=raw["timestamp"].where(is_number)))

    time = np.full(len(raw), np.datetime64("NaT", "ns"))
    for column in ("created_at", "timestamp"):
        shown, minutes = iso_times(texts, column)
        used = np.isnat(time) & ~np.isnat(shown)
        reason = "treatments whose time names no offset, read as UTC"
        counted.append((subject, "noted", reason, int((used & np.isnan(minutes)).sum())))
        time = np.where(used, moments(shown, minutes), time)
    for column in ("timestamp", "mills", "date"):
        time = np.where(np.isnat(time), _milliseconds(numbers, column), time)
    return time


def _insulin_and_carbs(
    treatments: pd.DataFrame,
    told_at: Times,
    schedule: Schedule | None,
    clock: Clock,
    subject: str,
    counted: list[Counted],
) -> list[pd.DataFrame]:
    """Readings of the treatments that say something, and of scheduled rates between them."""
    event = treatments["event"].str.lower().str.replace(" ", "")
    temporary, combo = event.str.startswith("tempbasal"), event.eq("combobolus")
    suspended = event.isin(("suspendpump", "pumpsuspend"))
    ended = event.isin(("resumepump", "pumpresume"))

    # A combo bolus names all it will give in enteredinsulin, and in insulin what it gave at once.
    # Where a pump imitates a temporary basal by one, its rate stands in the file as well.
    insulin = (
        treatments[["insulin", "enteredinsulin"]].max(axis=1).where(combo, treatments["insulin"])
    )
    by_rate = temporary | (combo & treatments["emulates"])
    said = pd.DataFrame({"time": treatments["time"]})
    said["bolus_u"] = insulin.where((insulin > 0) & ~by_rate)  # a 0 says that none was given
    said["carbs_g"] = treatments["carbs"].where(treatments["carbs"] > 0)

    words = treatments[temporary | suspended | ended].copy()
    words["rate"] = words["absolute"].fillna(words["rate"]).mask(suspended, 0.0)
    words["share"] = 1 + words["percent"].fillna(0) / 100
    words["minutes"] = words["duration"].where(temporary).clip(lower=0).fillna(0)
    words["minutes"] = words["minutes"].mask(suspended, SUSPENDED_MINUTES)
    rates = _basal(words.dropna(subset="time"), told_at, schedule, clock)
    own = rates[rates["row"] >= 0].set_index("row")
    said = said.join(own[["basal_u_h", "basal_minutes"]])
    scheduled = rates[rates["row"] < 0].drop(columns="row")

    silent = said.drop(columns="time").isna().all(axis=1)
    runs = (words["minutes"] > 0).reindex(said.index, fill_value=False)
    relative = words["rate"].isna().reindex(said.index, fill_value=False)
    called = treatments["event"].replace("", "untyped")
    reason = "treatments without insulin, carbs or a rate: " + called
    reason = reason.mask(temporary | ended, "ends of temporary basals")
    reason = reason.mask(runs, "temporary basals replaced at the same moment")
    if schedule is None:
        reason = reason.mask(
            runs & relative, "temporary basals relative to a schedule that is not given"
        )
    reason = reason.mask(treatments["time"].isna(), "treatments without a time, insulin or carbs")
    counts = reason[silent].value_counts()
    counted += [(subject, "dropped", str(why), int(number)) for why, number in counts.items()]
    for what, effect, rows in (
        ("combo boluses, counted whole at their time", "noted", combo & said["bolus_u"].notna()),
        ("insulin of temporary basals, told by their rate", "noted", by_rate & (insulin > 0)),
        ("scheduled basal rates between and within temporary ones", "added", scheduled["time"]),
    ):
        counted.append((subject, effect, what, len(rows) if effect == "added" else int(rows.sum())))
    return [said[~silent], scheduled]


def _basal(
    words: pd.DataFrame, told_at: Times, schedule: Schedule | None, clock: Clock
) -> pd.DataFrame:
    """Rates in U/h, each with the `row` of `words` that it begins with, or -1: row, time, rate.

    A temporary rate stands for its minutes or until the next word about basal. Between them
    stands the schedule, and a share of it where a rate is relative: cut where it changes.
    """
    words = words.sort_values("time", kind="stable")
    start = words["time"].to_numpy()
    known = np.concatenate([start, told_at[~np.isnat(told_at)]])
    lasts = (words["minutes"].to_numpy() * 60e9).astype("timedelta64[ns]")
    end = np.minimum(start + lasts, np.append(start[1:], start[-1:] + lasts[-1:]))
    spans = pd.DataFrame({"row": words.index, "start": start, "end": end})
    spans[["rate", "share"]] = words[["rate", "share"]].to_numpy()

    fixed = spans[spans["rate"].notna()]
    pieces = fixed.assign(begins=fixed["start"])
    if schedule is not None and len(known):
        gaps = pd.DataFrame({"start": np.append(known.min(), end), "row": -1, "share": 1.0})
        gaps["end"] = np.maximum(np.append(start, known.max()), gaps["start"].to_numpy())
        free = pd.concat([spans[spans["rate"].isna()].drop(columns="rate"), gaps])
        opens, closes = free["start"].to_numpy(), free["end"].to_numpy()
        points, scheduled = _scheduled(schedule, clock, opens.min(), closes.max())
        span, point, begins, ends = cut(opens, closes, points)
        relative = free.iloc[span].assign(begins=begins, end=ends)
        relative["rate"] = relative["share"] * scheduled[point - 1]
        pieces = pd.concat([pieces, relative])

    pieces = pieces[pieces["end"] > pieces["begins"]]
    return pd.DataFrame(
        {
            "row": pieces["row"].where(pieces["begins"] == pieces["start"], -1),
            "time": pieces["begins"],
            "basal_u_h": pieces["rate"].clip(lower=0),
            "basal_minutes": (pieces["end"] - pieces["begins"]) / pd.Timedelta(minutes=1),
        }
    )


def _scheduled(
    schedule: Schedule, clock: Clock, first: Any, last: Any
) -> tuple[Times, NDArray[np.float64]]:
    """When the scheduled rate changes, in UTC from `first` on, and to what."""
    day = np.timedelta64(1, "D")
    ordered = sorted(schedule)
    of_day = pd.to_timedelta([f"{clock_time}:00" for clock_time, _ in ordered]).to_numpy()
    rates = np.array([rate for _, rate in ordered])

    edges = clock.changes[(clock.changes > first) & (clock.changes < last)]
    points = [np.append(first, edges)]
    for begin, end in zip(points[0], np.append(edges, last), strict=True):
        ahead = clock.ahead[clock.step(begin)]
        days = np.arange((begin + ahead).astype("datetime64[D]"), (end + ahead) + day, day)
        change = (days.astype("datetime64[ns]")[:, None] + of_day).ravel() - ahead
        points.append(change[(change > begin) & (change < end)])
    utc = np.unique(np.concatenate(points))
    local = clock.local(utc)
    since_midnight = local - local.astype("datetime64[D]")
    # Before the first time of the day the last of the day before holds: index -1.
    return utc, rates[np.searchsorted(of_day, since_midnight, side="right") - 1]


def _of_person(given: Any, subject: str) -> Any:
    return given.get(subject) if isinstance(given, dict) else given


def _repeated_ids(table: RawTable) -> NDArray[np.bool_]:
    ids = table.frame["_id"]
    return (ids.notna() & ids.astype(str).duplicated()).to_numpy()
