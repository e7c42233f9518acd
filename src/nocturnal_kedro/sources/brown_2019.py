"""Brown 2019 (DCLP3): 168 people in a trial of closed-loop control, six months each, local time.

Three files hold all people: `cgm.txt` with 9 million readings, and the rate changes and boluses of
the pumps. What this reader mends, each counted in the tally: times as SAS text or ISO, wrong clocks
of pumps for which the publisher gives an adjusted time, and records that stand twice. 43 people
have no pump log: their insulin is missing, not 0. Carbs are not in these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Counted, Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._large import (
    NUMBER,
    TEXT,
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
    "Brown et al., NEJM 2019, doi:10.1056/NEJMoa1907863 (DCLP3, iDCL trial protocol 3), a "
    "registered download of the JAEB Center for Health Research, public datasets"
)
FOLDER = "brown_2019/Data Files"
CGM, BASAL, BOLUS = "cgm.txt", "Pump_BasalRateChange.txt", "Pump_BolusDelivered.txt"

TIME, ADJUSTED = "DataDtTm", "DataDtTm_adjusted"
# SAS text 11DEC17:23:59:25 or 11DEC2017:23:59:25, or ISO: a day, a separator, a time of day.
DAY_FORMS, CLOCK_FORM = ("%d%b%y", "%Y-%m-%d", "%d%b%Y"), "%H:%M:%S"
OTHER_FORMS = (
    "%d%b%y:%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S.%f",
    "%d%b%Y:%H:%M:%S.%f",
    "%Y-%m-%d",  # midnight
)


class Options(BaseModel, extra="forbid", frozen=True):
    """How long a pump's rate stands; the default holds for the published files."""

    # Hours. A pump logs a rate when it changes: every few minutes in closed loop, else by a daily
    # profile, whose segments are mostly shorter than this. After longer silence the log is lost.
    basal_longest_hours: float = Field(default=12.0, gt=0, le=48)


def find(root: Path, options: Options) -> list[Files]:
    """The three files, which hold all people; raises `InputError` where one is absent."""
    return [
        tuple(
            require_files("brown_2019", root, f"{FOLDER}/{name}", TITLE)[0]
            for name in (CGM, BASAL, BOLUS)
        )
    ]


def read(files: Files, options: Options) -> Readings:
    """Read all people; raises `InputError` on a missing column or an unreadable cell."""
    cgm, basal, bolus = files
    entries: list[Counted] = []
    tables = [_glucose(cgm, entries), _basal(basal, options, entries), _bolus(bolus, entries)]
    worn, pumped = set(tables[0]["subject"]), set(tables[1]["subject"]) | set(tables[2]["subject"])
    for subject in sorted(worn - pumped, key=lambda name: (len(name), name)):
        entries.append((subject, "noted", "person without a pump log, insulin missing", 1))
    return Readings(readings_frame(one_below_the_other(tables)), make_tally("read", entries))


def _glucose(path: Path, entries: list[Counted]) -> dict[str, Any]:
    names = column_names("brown_2019", path, TITLE)
    glucose = names[3] if len(names) > 3 else "column 4"  # whatever its name
    if glucose in ("PtID", "Period", TIME):
        raise InputError(
            f"source 'brown_2019', file '{path}': the fourth column is '{glucose}', where glucose "
            f"in mg/dL is expected. Use the file as published: {TITLE}."
        )
    types = {"PtID": WORD, "Period": WORD, TIME: TEXT, glucose: NUMBER}
    table = rows_of_a_person(read_large_table("brown_2019", path, types, TITLE), entries)
    people, periods = table.frame["PtID"].array, table.frame["Period"].array
    for code, period in enumerate(periods.categories):  # before and after randomization: all kept
        entries += each(people, periods.codes == code, "noted", f"readings of '{period}'")
    return {
        "subject": np.asarray(people, dtype=object),
        "time": _times(table, TIME),
        "glucose_mg_dl": table.glucose(glucose),
    }


def _basal(path: Path, options: Options, entries: list[Counted]) -> dict[str, Any]:
    table, times = _pump_log(path, {"CommandedBasalRate": NUMBER}, entries)
    rate = table.numbers("CommandedBasalRate")
    return {
        "subject": np.asarray(table.frame["PtID"].array, dtype=object),
        "time": times,
        "basal_u_h": rate,
        "basal_minutes": np.full(len(rate), 60 * options.basal_longest_hours),
    }


def _bolus(path: Path, entries: list[Counted]) -> dict[str, Any]:
    table, times = _pump_log(path, {"BolusAmount": NUMBER, "BolusType": WORD}, entries)
    people, amount = table.frame["PtID"].array, table.numbers("BolusAmount")
    # The duration of an extended bolus is not published.
    extended = table.frame["BolusType"].str.strip().str.lower().eq("extended").to_numpy(bool)
    reason = "extended boluses, given whole at the time of their record"
    entries += each(people, extended, "noted", reason)
    entries += each(people, amount == 0, "noted", "boluses of 0 units, which are none")
    return {
        "subject": np.asarray(people, dtype=object),
        "time": times,
        "bolus_u": np.where(amount == 0, np.nan, amount),
    }


def _pump_log(
    path: Path, types: Mapping[str, pa.DataType], entries: list[Counted]
) -> tuple[RawTable, np.ndarray]:
    """A pump's file and its times, without the records that stand twice."""
    types = {"RecID": NUMBER, "PtID": WORD, TIME: TEXT, ADJUSTED: TEXT, **types}
    table = rows_of_a_person(read_large_table("brown_2019", path, types, TITLE), entries)
    times = _times(table, ADJUSTED)
    unadjusted = np.isnat(times)
    times[unadjusted] = _times(rows_of(table, unadjusted), TIME)

    people = table.frame["PtID"].array
    repeated = _repeated(table.frame, times)
    entries += each(people, repeated, "dropped", f"records repeated in {path.name}")
    adjusted = ~repeated & ~unadjusted
    entries += each(people, adjusted, "changed", f"time in {path.name} taken from {ADJUSTED}")
    return rows_of(table, ~repeated), times[~repeated]


def _repeated(frame: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Records that stand twice: one RecID again, or the same of the same person and time.

    The publisher merged several downloads of each pump. Repeats are rare, so all columns are
    compared only where a person and a time stand twice.
    """
    by_id = frame[["PtID", "RecID"]].duplicated() & frame["RecID"].notna()
    moments = pd.DataFrame({"person": frame["PtID"].array.codes, "time": times}, frame.index)
    content = frame.drop(columns=["PtID", "RecID", TIME, ADJUSTED])
    again = (moments.duplicated(keep=False) & ~by_id).to_numpy(bool)
    alike = moments[again].join(content[again]).duplicated()
    repeated = by_id.to_numpy(bool)
    repeated[again] = alike.to_numpy()
    return repeated


def _times(table: RawTable, column: str) -> np.ndarray:
    """A column as naive times, NaT where empty; `InputError` names the first that is none.

    Day and time of day are parsed apart, each different one once; what has another form, slowly.
    """
    text = pa.chunked_array(pa.array(table.frame[column]))
    parts = []
    for piece, forms in (((0, -9), DAY_FORMS), ((-8, None), (CLOCK_FORM,))):
        coded = pc.utf8_slice_codeunits(text, *piece).dictionary_encode().combine_chunks()
        codes = coded.indices.fill_null(-1).to_numpy()
        parts.append(parsed(coded.dictionary.to_pylist(), codes, forms))
    day, clock = parts
    times = day + (clock - clock.astype("datetime64[D]"))
    rest = np.isnat(times) & table.frame[column].notna().to_numpy(bool)
    if rest.any():
        cells = table.frame.loc[rest, [column]].astype(object)
        other = RawTable(table.source, table.path, cells).times(column, *OTHER_FORMS)
        times[rest] = other.to_numpy()
    return times
