"""Forecast origins: who is asked to be forecast from when, frozen once for every model."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import Corpus
from nocturnal_kedro.series.schema import SLOT, SPLITS, STEPS_PER_DAY, TEST_SPLITS, make_tally

KEPT = "nights kept"


class Task(BaseModel, extra="forbid", frozen=True):
    """The question asked of every model: from when, how far back, how far ahead."""

    anchor: Literal["midnight"] = "midnight"
    context_steps: int = Field(default=512, ge=STEPS_PER_DAY)
    horizon_steps: int = Field(default=96, ge=1)
    coverage: float = Field(default=0.8, ge=0, le=1)  # of the last 24 h, and of the horizon


def build_origins(
    corpus: Corpus, splits: pd.DataFrame, task: Task
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The eligible origins at the anchor, and a tally of the nights that are not.

    Returns a frame source, subject, origin, split and a tally in `schema.TALLY_COLUMNS` with the
    source. Raises `InputError` if no test split has a night.
    """
    rejected = reject_origins(corpus, splits, task)
    anchored = np.flatnonzero(corpus.slot_of_day_T == 0)
    people = corpus.people.iloc[corpus.person_of(anchored)].reset_index(drop=True)
    steps = anchored - people["first"].to_numpy()
    nights = pd.DataFrame(
        {
            "source": people["source"],
            "subject": people["subject"],
            "origin": people["start"] + steps * SLOT,
            "split": rejected["split"].iloc[anchored].astype(object).to_numpy(),
            "reason": rejected["reason"].iloc[anchored].astype(str).to_numpy(),
        }
    )
    kept = nights[nights["reason"] == ""].drop(columns="reason").reset_index(drop=True)
    counts = nights.groupby(["source", "subject", "reason"]).size().reset_index(name="rows")
    counts["effect"] = np.where(counts["reason"] == "", "noted", "dropped")
    counts["reason"] = counts["reason"].replace("", KEPT)
    tally = make_tally(
        "nights", counts[["subject", "effect", "reason", "rows"]].itertuples(index=False)
    )
    tally["source"] = counts["source"]
    if not kept["split"].isin(TEST_SPLITS).any():
        reasons = nights["reason"].value_counts()
        raise InputError(
            f"no eligible night to test on among {len(nights)} midnights: "
            + "; ".join(
                f"{count} {reason or 'kept for training'}" for reason, count in reasons.items()
            )
            + ". Give more days of data, or lower task.coverage."
        )
    return kept, tally


def require_frozen(corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame, task: Task) -> None:
    """Raise `InputError` unless the table of origins is the one of this corpus, splits and task.

    Tables of different runs, or a file cut short, would put trained people among those tested.
    """
    expected = build_origins(corpus, splits, task)[0]
    if not origins.reset_index(drop=True).equals(expected):
        raise InputError(
            f"the frozen table holds {len(origins)} origins, and this corpus, splits and task give "
            f"{len(expected)}, or others: they are of different runs. Run data_processing again, "
            f"whole, with the same --params."
        )


def data_fingerprint(corpus: Corpus, splits: pd.DataFrame, origins: pd.DataFrame) -> str:
    """SHA-256 of what every model of a comparison must share: readings, splits and origins."""
    tables = (table.to_csv(index=False).encode() for table in (splits, origins))
    return hashlib.sha256(b"\n".join([corpus.fingerprint.encode(), *tables])).hexdigest()


def eligible_rows(corpus: Corpus, splits: pd.DataFrame, task: Task, split: str) -> np.ndarray:
    """Every row of the corpus from which a window of `split` may be forecast (int64)."""
    rejected = reject_origins(corpus, splits, task)
    fits = (rejected["reason"] == "") & (rejected["split"] == split)
    return np.flatnonzero(fits.to_numpy())


def reject_origins(corpus: Corpus, splits: pd.DataFrame, task: Task) -> pd.DataFrame:
    """For every row as an origin: its split and why it is not eligible ("" where it is).

    Eligible: the 24 h up to the origin and the whole horizon lie in one split, and of both at
    least `coverage` is covered by readings (`corpus.coverage`). A context longer than 24 h is cut
    at the start of the split when the window is gathered, so that no window straddles a boundary.
    """
    rows = np.arange(len(corpus.values_TC))
    first, last, split = _segment_of_rows(corpus, splits)

    glucose = corpus.observed_TC[:, 0]
    total = np.concatenate([[0], np.cumsum(corpus.covered_T)])
    before = np.maximum(rows + 1 - STEPS_PER_DAY, 0)
    after = np.minimum(rows + 1 + task.horizon_steps, len(rows))
    # A late reading of the origin's own slot was taken after the origin: not in the context.
    in_context = total[rows + 1] - total[before] - (glucose & corpus.late_T)
    in_horizon = total[after] - total[np.minimum(rows + 1, len(rows))]

    percent = f"{100 * task.coverage:g} %"
    reasons = {
        "day left out by splits.most_train_days or splits.source_shares": split == "unused",
        "window crosses the start, the end or a split boundary": (
            (rows + 1 - STEPS_PER_DAY < first) | (rows + 1 + task.horizon_steps > last)
        ),
        f"under {percent} of the 24 h before observed": (
            in_context < task.coverage * STEPS_PER_DAY
        ),
        f"under {percent} of the horizon observed": (
            in_horizon < task.coverage * task.horizon_steps
        ),
    }
    code = np.select(list(reasons.values()), np.arange(1, 1 + len(reasons), dtype=np.int8), 0)
    return pd.DataFrame(
        {
            "split": split,
            "reason": pd.Categorical.from_codes(code, ["", *reasons]),
            "first": first,
            "last": last,
        }
    )


def split_segments(
    corpus: Corpus, splits: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, last row (half open) and split of every segment, by their first rows."""
    segments = splits.merge(corpus.people, on=["source", "subject"], suffixes=("", "_person"))
    begin, end = (
        np.clip(
            segments["first"] + (segments[edge] - segments["start_person"]) // SLOT,
            segments["first"],
            segments["last"],
        ).to_numpy(np.int64)
        for edge in ("start", "end")
    )
    code = np.array([SPLITS.index(name) for name in segments["split"]], np.int8)
    # One without a row comes before that which has its first row.
    order = np.lexsort((end, begin))
    return begin[order], end[order], code[order]


def _segment_of_rows(
    corpus: Corpus, splits: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, pd.Categorical]:
    """First row, last row (half open) and name of the split that each row lies in."""
    length = len(corpus.values_TC)
    first, last = np.zeros(length, np.int64), np.zeros(length, np.int64)
    code = np.full(length, -1, np.int8)
    for begins, ends, name in zip(*split_segments(corpus, splits), strict=True):
        first[begins:ends], last[begins:ends], code[begins:ends] = begins, ends, name
    return first, last, pd.Categorical.from_codes(code, list(SPLITS))


def rows_of_split(corpus: Corpus, splits: pd.DataFrame, split: str) -> np.ndarray:
    """Every row of the corpus that lies in `split` (int64)."""
    return np.flatnonzero(_segment_of_rows(corpus, splits)[2] == split)


def origin_rows(corpus: Corpus, origins: pd.DataFrame) -> np.ndarray:
    """The corpus row of every origin, in the order of the table (int64)."""
    people = corpus.people[["source", "subject", "start", "first"]]
    joined = origins[["source", "subject", "origin"]].merge(
        people, on=["source", "subject"], how="left", validate="many_to_one"
    )
    if joined["first"].isna().any():
        lost = joined[joined["first"].isna()].iloc[0]
        raise InputError(
            f"origin of subject '{lost['subject']}' (source '{lost['source']}') is not in the "
            f"corpus. Corpus and origins come from different runs: run data_processing again."
        )
    return (joined["first"] + (joined["origin"] - joined["start"]) // SLOT).to_numpy(np.int64)
