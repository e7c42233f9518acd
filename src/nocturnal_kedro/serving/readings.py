"""What a person's record says up to an origin, as it is asked with: typed, checked, canonical."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import (
    PLAUSIBLE,
    READING_COLUMNS,
    SLOT,
    STEP_MINUTES,
    Counted,
    readings_frame,
)
from nocturnal_kedro.sources._clock import ISO_TIME, to_local, zone_clock
from nocturnal_kedro.sources._raw import GLUCOSE_WORDS, to_mg_dl
from nocturnal_kedro.sources.tidy import UNIT_BORDER

SUBJECT = "served"  # nobody's name is asked for
MOST_ROWS = 20_000
MOST_DAYS = 31
YEARS = (1970, 2200)
WEEK_MINUTES = 7 * 24 * 60


def _time(given: object) -> object:
    """A text is read as ISO 8601 with a clock time; a bare number could be of any unit."""
    if isinstance(given, datetime):
        return given
    form = "is no time in ISO 8601 with a date and a clock time, like '2026-01-05T23:55:00'"
    told = re.fullmatch(ISO_TIME, given) if isinstance(given, str) and len(given) < 50 else None
    if told is None:
        raise ValueError(form)
    try:
        read = datetime.fromisoformat(told[1] + (told[2] or "").upper())
    except ValueError as error:
        raise ValueError(form) from error
    if not YEARS[0] < read.year < YEARS[1]:
        raise ValueError(f"lies outside of the years {YEARS[0]} to {YEARS[1]}")
    return read


Time = Annotated[
    datetime,
    BeforeValidator(_time),
    WithJsonSchema(
        {
            "type": "string",
            "description": "ISO 8601; local without an offset, with one where `zone` is given",
            "examples": ["2026-01-05T23:55:00"],
        }
    ),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _between(column: str) -> Any:
    low, high = PLAUSIBLE[column]
    return Field(default=None, ge=low, le=high)


class Reading(BaseModel, extra="forbid", frozen=True):
    """What the record says of one moment; what is absent is not known, a 0 is a 0."""

    time: Time
    glucose: Number | Literal["LOW", "HIGH"] | None = None  # in the unit of the whole
    bolus_u: Number | None = _between("bolus_u")
    basal_u_h: Number | None = _between("basal_u_h")
    # How long the rate stands at most; minutes without a rate end the one before.
    basal_minutes: Number | None = Field(default=None, gt=0, le=WEEK_MINUTES)
    carbs_g: Number | None = _between("carbs_g")
    steps: Number | None = _between("steps")
    heart_rate: Number | None = _between("heart_rate")

    @model_validator(mode="after")
    def _rate_ends(self) -> Self:
        if self.basal_u_h is not None and self.basal_minutes is None:
            raise ValueError(
                "basal_u_h without basal_minutes: say how long the rate stands at most, as the "
                "minutes to the pump's next record"
            )
        return self


class Recent(BaseModel, extra="forbid", frozen=True):
    """One person's recent readings, and from when the night is to be forecast."""

    origin: Time  # on the 5-minute grid; nothing after it may be told
    unit: Literal["mg/dL", "mmol/L"]  # of every glucose
    zone: str | None = Field(default=None, max_length=64, examples=["Europe/London"])
    readings: tuple[Reading, ...] = Field(min_length=1, max_length=MOST_ROWS)


def to_readings(recent: Recent) -> tuple[pd.DataFrame, pd.Timestamp, list[Counted]]:
    """Canonical readings in local time, the local origin, and what became of rows on the way.

    Raises `InputError` on times that are not in order, double, after the origin, too long before
    it or of another kind than `zone` says, and on glucose whose median is of the other unit.
    """
    _require_times(recent)
    frame = readings_frame(_columns(recent))
    origin = _moment(recent.origin)
    counted: list[Counted] = []
    if recent.zone is not None:
        utc = np.append(frame["time"].to_numpy(), origin)
        clock = zone_clock("zone", recent.zone, utc)
        frame, counted = to_local(frame, {SUBJECT: clock})
        [shown], [step] = clock.local(utc[-1:]), clock.step(utc[-1:])
        if shown < clock.resumes[step]:
            raise InputError(
                f"origin: {recent.origin.isoformat()} lies in an hour that the clock of "
                f"{recent.zone} shows a second time. Give one before or after that hour."
            )
        origin = shown
    local = pd.Timestamp(origin)
    if local != local.floor(SLOT):
        raise InputError(
            f"origin: {local.isoformat()} is not on the {STEP_MINUTES}-minute grid. Give "
            f"{local.floor(SLOT).isoformat()}, and no reading after it."
        )
    return frame, local, counted


def _columns(recent: Recent) -> dict[str, Any]:
    rows = recent.readings
    told: dict[str, Any] = {
        name: np.array([np.nan if (v := getattr(row, name)) is None else v for row in rows])
        for name in READING_COLUMNS
        if name != "glucose_mg_dl"
    }
    return told | {
        "subject": np.full(len(rows), SUBJECT, dtype=object),
        "time": [_moment(row.time) for row in rows],
        "glucose_mg_dl": _glucose(recent),
    }


def _glucose(recent: Recent) -> np.ndarray:
    """In mg/dL; the words of a sensor at the end of its range as the sources read them."""
    given = [row.glucose for row in recent.readings]
    numbers = np.array([np.nan if g is None or isinstance(g, str) else g for g in given])
    words = np.array([GLUCOSE_WORDS[g] if isinstance(g, str) else np.nan for g in given])
    if np.isnan(numbers).all() and np.isnan(words).all():
        raise InputError("readings: no row has a glucose. Give the sensor's readings.")
    if not np.isnan(numbers).all():
        typical = float(np.nanmedian(numbers))
        looks = "mmol/L" if typical < UNIT_BORDER else "mg/dL"
        if looks != recent.unit:
            raise InputError(
                f"unit: {recent.unit} was given, and the median glucose of {typical:.4g} looks "
                f"like {looks}. Correct the unit, or the readings."
            )
    in_mg_dl = to_mg_dl(numbers) if recent.unit == "mmol/L" else numbers
    return np.where(np.isnan(words), in_mg_dl, words)


def _require_times(recent: Recent) -> None:
    times = [recent.origin, *(row.time for row in recent.readings)]
    places = ["origin", *(f"readings.{row}.time" for row in range(len(recent.readings)))]
    for place, time in zip(places, times, strict=True):
        if (time.tzinfo is None) == (recent.zone is not None):
            raise InputError(
                f"{place}: {time.isoformat()} has "
                + (
                    f"no offset from UTC, and zone is {recent.zone!r}. Give offsets, or leave zone "
                    f"out and give local times."
                    if recent.zone is not None
                    else "an offset from UTC, and midnight is needed where the person lives. Give "
                    "zone, an IANA name like 'Europe/London', or local times without an offset."
                )
            )
    for row, (before, after) in enumerate(pairwise(times[1:]), start=1):
        if after <= before:
            raise InputError(
                f"readings.{row}.time: {after.isoformat()} is not after {before.isoformat()} of "
                f"the row before. Sort rows by time and put what is of one moment into one row; "
                f"where a clock was put back, give times with their offsets, and zone."
            )
    if times[-1] > recent.origin:
        raise InputError(
            f"readings.{len(recent.readings) - 1}.time: {times[-1].isoformat()} is after the "
            f"origin, {recent.origin.isoformat()}. Leave out what comes after it, or give a later "
            f"origin."
        )
    if (recent.origin - times[1]).days >= MOST_DAYS:
        raise InputError(
            f"readings.0.time: {times[1].isoformat()} is {(recent.origin - times[1]).days} days "
            f"before the origin, and at most {MOST_DAYS} are looked at. Leave older rows out."
        )


def _moment(time: datetime) -> np.datetime64:
    """What is shown, or of a time with an offset UTC."""
    plain = time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(plain, "ns")
