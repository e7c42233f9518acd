"""Tamborlane 2008: the JDRF trial of continuous glucose monitoring, 451 people, no insulin.

Its 18 million readings lie in 19 tables, one person's in several of them, unsorted and off the
5-minute grid. Some sensors of the time read every 10 minutes. Faults mended, each counted: readings
that stand twice, also over the borders of files, and files that are in Latin-1 and not in UTF-8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from pydantic import BaseModel

from nocturnal_kedro.series.schema import Counted, Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._large import each
from nocturnal_kedro.sources._raw import read_table, require_files

TITLE = (
    "the JDRF Continuous Glucose Monitoring Randomized Clinical Trial, Tamborlane et al., "
    "N Engl J Med 2008, doi:10.1056/NEJMoa0805017 "
    "(JAEB Center for Health Research, public datasets)"
)
PATTERN = "tamborlane_2008/**/tblADataRTCGM_*.csv"
PUBLISHED_FILES = 19

REQUIRED = ("PtID", "DeviceDtTm", "Glucose")
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %I:%M %p",
    "%m/%d/%Y",
)


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose: the tables say all."""


def find(root: Path, options: Options) -> list[Files]:
    """All tables as one part, as a person's rows lie in several; `InputError` if there is none."""
    return [tuple(require_files("tamborlane_2008", root, PATTERN, TITLE))]


def read(files: Files, options: Options) -> Readings:
    """Read all tables; raises `InputError` on a missing column or an unreadable cell."""
    tables, latin = zip(*(_read_one(path) for path in files), strict=True)
    subject = union_categoricals([table["PtID"] for table in tables])
    time = np.concatenate([table["time"] for table in tables])
    glucose = np.concatenate([table["glucose"] for table in tables])
    del tables

    nobody = subject.codes < 0
    repeated = _repeated(subject.codes, time, glucose) & ~nobody
    kept = ~nobody & ~repeated
    entries: list[Counted] = [
        *each(subject, np.full(len(subject), True), "in", "rows of all tables"),
        *each(subject, nobody, "dropped", "rows that name no person"),
        *each(subject, repeated, "dropped", "readings that stand twice"),
        ("", "noted", "rows of tables read as Latin-1, which are no UTF-8", sum(latin)),
        ("", "noted", "tables absent of the 19 published", max(PUBLISHED_FILES - len(files), 0)),
    ]
    frame = readings_frame(
        {"subject": subject[kept], "time": time[kept], "glucose_mg_dl": glucose[kept]}
    )
    return Readings(frame, make_tally("read", entries))


def _read_one(path: Path) -> tuple[pd.DataFrame, int]:
    """Person, time and glucose of one table, and its rows if it is in Latin-1."""
    encoding = _encoding(path)
    table = read_table(
        "tamborlane_2008",
        path,
        REQUIRED,
        TITLE,
        encoding=encoding,
        numeric=("RecID", "Glucose"),
    )
    frame = pd.DataFrame(
        {
            "PtID": table.frame["PtID"].str.strip().astype("category"),
            "time": table.times("DeviceDtTm", *TIME_FORMATS),
            "glucose": table.glucose("Glucose"),
        }
    )
    return frame, len(frame) if encoding == "latin-1" else 0


def _encoding(path: Path) -> str:
    """UTF-8 unless a byte is none; every byte is a letter in Latin-1."""
    try:
        path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _repeated(person: np.ndarray, time: np.ndarray, glucose: np.ndarray) -> np.ndarray:
    """Whether a row has the person, time and glucose of one before; without a time none has."""
    order = np.lexsort((glucose, time, person))
    same = np.ones(len(order), dtype=bool)
    same[:1] = False
    for column in (person, time, glucose):
        ordered = column[order]
        equal = ordered[1:] == ordered[:-1]
        if column is glucose:  # two rows without a reading say the same nothing
            equal |= np.isnan(ordered[1:]) & np.isnan(ordered[:-1])
        same[1:] &= equal
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[same]] = True
    return repeated
