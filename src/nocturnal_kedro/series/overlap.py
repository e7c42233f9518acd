"""The same readings under two names: found by marks, so that no two people are compared in full.

A mark is a hash. A *moment* is the time and value of one reading: it finds copies also where a
person's readings are mixed with others, and people share a few by chance. A *stretch* is the
values of 24 readings in a row: it finds copies whose dates were shifted, and nobody shares one by
chance. Of each kind one mark in `KEEP_ONE_IN` is kept, chosen by its value, so that copies keep
the same ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nocturnal_kedro.series.grid import Ordered
from nocturnal_kedro.series.schema import MG_DL_PER_MMOL_L

KEEP_ONE_IN = 4
STRETCH = 24  # readings
FEWEST_BENDS = 8  # changes of slope in a stretch: straight lines look alike in everybody
FEWEST_MARKS = 8  # shared ones: about three hours of readings
# Of a person's marks. A stretch of one's own that comes again is a copy of a day, however short.
MOST_BY_CHANCE_PCT = {"moment": 4.0, "stretch": 1.0, "repeat": 0.0}
FEWEST_BY_CHANCE = {"moment": 100, "stretch": 0, "repeat": 0}  # marks
MOST_IN_COMMON = 4  # people that share a moment; more share it by chance, in a crowd
_ODD = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64 (Steele et al., OOPSLA 2014)

Marks = NDArray[np.uint64]

OVERLAP_COLUMNS = (
    "source", "subject", "other_source", "other_subject", "kind",
    "marks", "shared_pct", "other_shared_pct", "start", "end",
)  # fmt: skip


def mark_readings(ordered: Ordered) -> pd.DataFrame:
    """Marks of a source's glucose readings: source, subject, kind, mark (uint64), time.

    `kind` is moment or stretch; the time of a stretch is that of its first reading.
    """
    person_N, time_N, value_N = ordered.glucose
    # In whole tenths of mmol/L a copy that was converted with 18 instead of 18.0182 is the same.
    whole_N = np.rint(value_N / MG_DL_PER_MMOL_L * 10).astype(np.int64).view(np.uint64)
    moments = _mix(_mix((time_N // 10**9).view(np.uint64)) ^ whole_N)
    frames = [_kept(ordered, "moment", moments, np.arange(len(moments)))]
    if len(whole_N) > STRETCH:
        rows, stretches = _stretches(person_N, whole_N, value_N)
        frames.append(_kept(ordered, "stretch", stretches, rows))
    return pd.concat(frames, ignore_index=True)


def find_overlaps(marks: pd.DataFrame) -> pd.DataFrame:
    """Pairs of people that share marks, and people that repeat themselves, in OVERLAP_COLUMNS.

    A person beside himself, of kind `repeat`, has stretches that stand at two times.

    `shared_pct` is the share of the person's marks of a kind that the other has too; `start` and
    `end` are the person's first and last of them. What chance makes is listed too, with its small
    share; see `is_copy`.
    """
    people = marks.groupby(["source", "subject"], observed=True)
    names = list(people.groups)
    marks = pd.DataFrame(
        {
            "person": people.ngroup().to_numpy(),
            "kind": marks["kind"].astype(str),
            "mark": marks["mark"].to_numpy(),
            "time": marks["time"].to_numpy(),
        }
    )
    repeats = _repeats(marks)
    marks = marks.drop_duplicates(["person", "kind", "mark"])
    totals = marks.groupby(["kind", "person"]).size()
    in_common = marks.groupby(["kind", "mark"])["person"].transform("size")
    crowded = (marks["kind"] == "moment") & (in_common > MOST_IN_COMMON)
    common = marks[(in_common > 1) & ~crowded]
    pairs = common.merge(common, on=["kind", "mark"], suffixes=("", "_other"))
    pairs = pairs[pairs["person"] != pairs["person_other"]]
    shared = pairs.groupby(["kind", "person", "person_other"]).agg(
        marks=("mark", "size"), start=("time", "min"), end=("time", "max")
    )
    shared = pd.concat([shared.reset_index(), repeats], ignore_index=True)
    shared = shared[shared["marks"] >= FEWEST_MARKS]
    for key, column in (("person", "shared_pct"), ("person_other", "other_shared_pct")):
        of_kind = shared["kind"].replace("repeat", "stretch")
        of_whom = pd.MultiIndex.from_arrays([of_kind, shared[key]])
        shared[column] = 100 * shared["marks"] / totals.reindex(of_whom).to_numpy()
    shared = shared.sort_values("shared_pct", ascending=False, kind="stable")
    for key, prefix in (("person", ""), ("person_other", "other_")):
        shared[prefix + "source"] = [names[code][0] for code in shared[key]]
        shared[prefix + "subject"] = [names[code][1] for code in shared[key]]
    # Each pair once, from the side whose share is the larger.
    first = shared["shared_pct"] > shared["other_shared_pct"]
    tie = (shared["shared_pct"] == shared["other_shared_pct"]) & (
        shared["person"] <= shared["person_other"]
    )
    return shared.loc[first | tie, list(OVERLAP_COLUMNS)].reset_index(drop=True)


def is_copy(overlaps: pd.DataFrame) -> pd.Series:
    """Which of the pairs share more than chance makes."""
    share = overlaps[["shared_pct", "other_shared_pct"]].max(axis=1)
    many = overlaps["marks"] >= overlaps["kind"].map(FEWEST_BY_CHANCE).astype(float)
    return many & (share > overlaps["kind"].map(MOST_BY_CHANCE_PCT).astype(float))


def _repeats(marks: pd.DataFrame) -> pd.DataFrame:
    """People whose stretches stand at two times: how many, from when to when."""
    own = marks[marks["kind"] == "stretch"]
    again = own[own.duplicated(["person", "mark"], keep=False)]
    people = again.groupby("person").agg(
        marks=("mark", "nunique"), start=("time", "min"), end=("time", "max")
    )
    return people.reset_index().assign(kind="repeat", person_other=lambda f: f["person"])


def _stretches(
    person_N: NDArray[np.int64], whole_N: Marks, value_N: NDArray[np.float64]
) -> tuple[NDArray[np.intp], Marks]:
    """First row and hash of every run of STRETCH readings of one person that is no straight line.

    The hash is a polynomial in the odd number modulo 2^64, by differences of prefix sums.
    """
    power_N = np.cumprod(np.full(len(whole_N), _ODD))
    inverse_N = np.cumprod(np.full(len(whole_N), np.uint64(pow(int(_ODD), -1, 2**64))))
    prefix_N = np.concatenate([[np.uint64(0)], np.cumsum(_mix(whole_N) * power_N)])
    hash_N = (prefix_N[STRETCH:] - prefix_N[:-STRETCH]) * inverse_N[: len(whole_N) - STRETCH + 1]
    bent_N = np.zeros(len(whole_N), np.int64)
    bent_N[1:-1] = np.abs(np.diff(value_N, 2)) > 1e-6
    bends_N = np.concatenate([[0], np.cumsum(bent_N)])
    windows = len(whole_N) - STRETCH + 1
    bends = bends_N[STRETCH - 1 : STRETCH - 1 + windows] - bends_N[1 : 1 + windows]
    own = person_N[STRETCH - 1 :] == person_N[:windows]
    rows = np.flatnonzero(own & (bends >= FEWEST_BENDS))
    return rows, _mix(hash_N[rows])


def _kept(ordered: Ordered, kind: str, marks: Marks, rows: NDArray[np.intp]) -> pd.DataFrame:
    kept = marks % np.uint64(KEEP_ONE_IN) == 0
    rows = rows[kept]
    glucose = ordered.glucose
    return pd.DataFrame(
        {
            "source": pd.Categorical([ordered.source] * len(rows), [ordered.source]),
            "subject": pd.Categorical.from_codes(glucose.person_N[rows], ordered.subjects),
            "kind": pd.Categorical([kind] * len(rows), ["moment", "stretch"]),
            "mark": marks[kept],
            "time": glucose.time_N[rows].view("datetime64[ns]"),
        }
    )


def _mix(numbers: Marks) -> Marks:
    """The finaliser of splitmix64: close numbers get unlike hashes."""
    mixed = numbers + _ODD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
