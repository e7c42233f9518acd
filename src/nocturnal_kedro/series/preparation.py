"""One part of a source made ready: its gridded series, its tally, and the marks of its readings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.series import grid, overlap, schema
from nocturnal_kedro.series.grid import GridOptions, grid_people, order_readings
from nocturnal_kedro.series.overlap import mark_readings
from nocturnal_kedro.series.schema import Readings, Words, make_tally

# What a prepared part follows from, beside the raw files and their reader.
CODE = (Path(__file__), *(Path(str(module.__file__)) for module in (grid, overlap, schema)))


class CohortOptions(BaseModel, extra="forbid", frozen=True):
    """Who is left out, as `source/subject`."""

    exclude: Words = ()


@dataclass(frozen=True)
class Prepared:
    """Frames as in docs/datasets.md, and what they are made from."""

    series: pd.DataFrame
    tally: pd.DataFrame
    marks: pd.DataFrame
    made_from: dict[str, Any]


def prepare(
    source: str, readings: Readings, options: GridOptions, made_from: dict[str, Any]
) -> Prepared:
    """Grid and mark the readings of a part; raises `InputError` as the grid does."""
    ordered = order_readings(source, readings)
    series, tally = grid_people(ordered, options)
    return Prepared(
        series=series,
        tally=pd.concat([readings.tally.assign(source=source), tally], ignore_index=True),
        marks=mark_readings(ordered),
        made_from=made_from,
    )


def leave_out(prepared: Prepared, options: CohortOptions) -> Prepared:
    """Without the people of `options.exclude`; their slots are counted as dropped.

    Raises `InputError` on a name that is not there, and when nobody is left.
    """
    if not options.exclude:
        return prepared
    series, marks = (
        frame.assign(person=frame["source"].astype(str) + "/" + frame["subject"].astype(str))
        for frame in (prepared.series, prepared.marks)
    )
    known = series["person"].unique()
    for name in options.exclude:
        require_known("person in cohort.exclude", name, known)
    if set(known) <= set(options.exclude):
        raise InputError("cohort.exclude leaves nobody. Leave somebody out of it.")
    out = series[series["person"].isin(options.exclude)]
    counts = out.groupby(["source", "subject"], observed=True).size()
    reason = "slots of a person left out by cohort.exclude"
    tallies = [
        make_tally("grid", [(subject, "dropped", reason, slots)]).assign(source=source)
        for (source, subject), slots in counts.items()
    ]
    kept, kept_marks = (
        frame[~frame["person"].isin(options.exclude)].drop(columns="person")
        for frame in (series, marks)
    )
    for key in ("source", "subject"):
        kept[key] = kept[key].cat.remove_unused_categories()
    return replace(
        prepared,
        series=kept.reset_index(drop=True),
        marks=kept_marks,
        tally=pd.concat([prepared.tally, *tallies], ignore_index=True),
    )
