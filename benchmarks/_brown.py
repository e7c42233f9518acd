"""An invented cohort of the size and in the exact raw format of Brown 2019 (DCLP3).

    write_cohort(Path("raw/brown_2019/Data Files"))

Nobody's data: a daily rhythm, meals with boluses, slow noise, a pump that adapts its rate. Times
are SAS text, for every eighth person ISO; people come in no order; two pump clocks say 2010.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

STEP_S, DAY_S = 300, 86_400
CGM_START = pd.Timestamp("2018-01-01")
WRONG_CLOCK = np.timedelta64(8 * 365, "D")  # two pumps say 2010
CLOSED_LOOP, WITH_PUMP = 100 / 168, 125 / 168  # shares of all people
BOLUSES_A_DAY = 6
BASELINE_DAYS = 14


def write_cohort(
    folder: Path, people: int = 168, cgm_rows: int = 9_000_000, seed: int = 0
) -> dict[str, float]:
    """Write `cgm.txt` and both pump files into `folder`; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    names = draw.permutation(np.arange(1, people + 1))
    rows_each = np.diff(np.linspace(0, cgm_rows, people + 1).astype(int))
    with_pump, closed_loop = round(WITH_PUMP * people), round(CLOSED_LOOP * people)
    text = _Times(days=int(rows_each.max() * STEP_S / DAY_S * 1.1) + 60)
    held = {"people": people, "people_without_pump": people - with_pump, "bolus_u": 0.0}

    cgm = _File(folder / "cgm.txt", "PtID|Period|DataDtTm|CGM")
    basal = _File(
        folder / "Pump_BasalRateChange.txt",
        "RecID|PtID|DataDtTm|CommandedBasalRate|DataDtTm_adjusted",
    )
    bolus = _File(
        folder / "Pump_BolusDelivered.txt",
        "RecID|PtID|DataDtTm|BolusAmount|DataDtTm_adjusted|BolusType",
    )
    for number, (name, rows) in enumerate(zip(names, rows_each, strict=True)):
        seconds, glucose, doses_at, doses = _person(draw, int(rows))
        write_time = text.iso if number % 8 == 7 else text.sas
        baseline = seconds < seconds[0] + BASELINE_DAYS * DAY_S
        period = np.where(baseline, "1. Baseline", "2. Post Randomization")
        cgm.write(np.full(rows, name), period, write_time(seconds), glucose)
        if number >= with_pump:
            continue
        changes, rates = _basal(draw, seconds, glucose, closed_loop=number < closed_loop)
        kind = np.where(draw.random(len(doses)) < 0.04, "Extended", "Standard")
        for file, at, amount, rest in (
            (basal, changes, rates, ()),
            (bolus, doses_at, doses, (kind,)),
        ):
            clock_wrong = number in (3, 5)
            raw = text.iso(at, back=WRONG_CLOCK) if clock_wrong else text.iso(at)
            adjusted = text.iso(at) if clock_wrong else pa.nulls(len(at), pa.string())
            record = file.rows + 1 + np.arange(len(at))
            file.write(record, np.full(len(at), name), raw, amount, adjusted, *rest)
        held["bolus_u"] += float(doses.sum())
    for file in (cgm, basal, bolus):
        file.close()
        held[f"{file.path.stem}_rows"] = file.rows
        held[f"{file.path.stem}_mb"] = file.path.stat().st_size / 1e6
    return held


def _person(draw: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    """Seconds and mg/dL of each reading, seconds and units of each bolus."""
    steps = int(rows * 1.05) + 100
    hours = np.arange(steps) / 12 % 24
    meal = draw.random(steps) < BOLUSES_A_DAY / 288 * np.where((hours > 6) & (hours < 23), 1.4, 0.1)
    size = np.where(meal, draw.gamma(3, 0.4, steps), 0.0)
    after = np.arange(60) / 12
    rise = np.convolve(size, 60 * after * np.exp(1 - after), mode="full")[:steps]
    slow = 4 * np.convolve(draw.normal(0, 1, steps + 95), np.hanning(96), mode="valid")
    rhythm = draw.uniform(90, 140) + 15 * np.sin(2 * np.pi * (hours - 4) / 24)
    glucose = rhythm + 0.8 * rise + slow + draw.normal(0, 1.5, steps)
    glucose = np.clip(np.rint(glucose), 39, 401).astype(np.int64)

    seconds = draw.integers(0, 30 * DAY_S) + np.arange(steps) * STEP_S + np.arange(steps) // 5000
    warming_up = np.arange(steps) % 2880 < 24  # a new sensor every ten days
    lost = np.convolve(draw.random(steps) < 0.0008, np.ones(20), mode="full")[:steps] > 0
    kept = np.flatnonzero(~(warming_up | lost))
    kept = kept[:rows] if len(kept) >= rows else np.arange(rows)
    doses_at = np.flatnonzero(meal[: kept[-1]])
    doses = np.round(size[doses_at] * 4 + 0.1, 2)
    return seconds[kept], glucose[kept], seconds[doses_at] + 17, doses


def _basal(
    draw: np.random.Generator, seconds: np.ndarray, glucose: np.ndarray, closed_loop: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and U/h of each change of rate."""
    if closed_loop:
        at, wanted = seconds + draw.integers(1, 250), (glucose - 70) / 80
        return at, np.round(draw.uniform(0.5, 1.3) * np.clip(wanted, 0, 3), 3)
    midnights = np.arange(seconds[0] // DAY_S + 1, seconds[-1] // DAY_S) * DAY_S
    at = (midnights[:, None] + np.array([0, 4, 8, 12, 17, 21]) * 3600).ravel()
    return at, np.tile(np.round(draw.uniform(0.4, 1.4, 6), 3), len(midnights))


class _Times:
    """Text of seconds since the start of the study, from tables of days and of times of day."""

    def __init__(self, days: int) -> None:
        self.midnights = CGM_START.to_datetime64() + np.arange(days).astype("timedelta64[D]")
        self.clocks = pa.array(
            np.datetime_as_string(np.arange(DAY_S).astype("datetime64[s]")).astype("U19").tolist()
        )
        self.clocks = pc.utf8_slice_codeunits(self.clocks, 11)
        self.sas_days = pa.array(pd.DatetimeIndex(self.midnights).strftime("%d%b%y").str.upper())

    def sas(self, seconds: np.ndarray) -> pa.Array:
        return self._text(self.sas_days, ":", seconds)

    def iso(self, seconds: np.ndarray, back: np.timedelta64 | int = 0) -> pa.Array:
        days = pa.array(np.datetime_as_string(self.midnights - back, unit="D").tolist())
        return self._text(days, " ", seconds)

    def _text(self, days: pa.Array, between: str, seconds: np.ndarray) -> pa.Array:
        day, clock = (
            days.take(pa.array(seconds // DAY_S)),
            self.clocks.take(pa.array(seconds % DAY_S)),
        )
        return pc.binary_join_element_wise(day, clock, between)


class _File:
    """A file with `|` between cells that grows person by person."""

    def __init__(self, path: Path, header: str) -> None:
        self.path, self.names, self.rows = path, header.split("|"), 0
        self.stream = path.open("wb")
        self.stream.write(f"{header}\n".encode())

    def write(self, *columns: np.ndarray | pa.Array) -> None:
        table = pa.table([pa.array(column) for column in columns], names=self.names)
        form = pa.csv.WriteOptions(include_header=False, delimiter="|", quoting_style="none")
        pa.csv.write_csv(table, self.stream, form)
        self.rows += len(table)

    def close(self) -> None:
        self.stream.close()
