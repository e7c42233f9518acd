"""GlucoBench: public CGM datasets as its authors harmonised them, a CSV each: id, time, gl.

Every CSV in the folder is one dataset, and a person is told by file and id, as ids begin anew in
each. Files that hold the same people in two versions (with and without covariates) are not told
apart: keep one. Not all of its people have type 1 diabetes. Covariates are not used, and noted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from nocturnal_kedro.series.schema import Counted, Readings, make_tally, readings_frame
from nocturnal_kedro.sources import Files
from nocturnal_kedro.sources._raw import read_table, require_files

TITLE = (
    "GlucoBench, Sergazinov et al., ICLR 2024, arXiv:2410.05780 "
    "(github.com/IrinaStatsLab/GlucoBench, folder raw_data)"
)
PATTERN = "glucobench/*.csv"

REQUIRED = ("id", "time", "gl")
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%S.%f",
    "%Y-%m-%d",  # midnight, as some programs write it
)


class Options(BaseModel, extra="forbid", frozen=True):
    """Nothing to choose: every file in the folder is read."""


def find(root: Path, options: Options) -> list[Files]:
    """Every CSV of the folder, a dataset each; raises `InputError` where there is none."""
    return [(file,) for file in require_files("glucobench", root, PATTERN, TITLE)]


def read(files: Files, options: Options) -> Readings:
    """Read one dataset; raises `InputError` on a missing column or an unreadable cell."""
    [path] = files
    table = read_table("glucobench", path, REQUIRED, TITLE)
    # A column of whole numbers that was once read as a float says 1.0 for 1.
    person = table.frame["id"].str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    subject = path.stem + "-" + person
    named = person.notna().to_numpy()
    anonymous = int((~named).sum())
    entries: list[Counted] = [
        *((who, "in", "rows in file", int(n)) for who, n in subject.value_counts().items()),
        ("", "in", f"rows in '{path.name}' without an id", anonymous),
        ("", "dropped", f"rows in '{path.name}' without an id", anonymous),
    ]
    for column in table.frame.columns.difference(list(REQUIRED), sort=False):
        if filled := int(np.count_nonzero(table.frame[column].notna())):
            entries.append(("", "noted", f"column '{column}' of '{path.name}' not used", filled))
    frame = readings_frame(
        {
            "subject": subject[named],
            "time": table.times("time", *TIME_FORMATS)[named],
            "glucose_mg_dl": table.glucose("gl")[named],
        }
    )
    return Readings(frame, make_tally("read", entries))
