"""Who and when is for training: two hold-outs and a validation cut, in one frozen table.

`patient` holds people never seen, `temporal` the last share of everybody else. `validation` is
cut from what remains the same two ways: some people wholly, and the last share of the others.
Boundaries fall on local midnights; no window crosses one.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import SLOT


class SplitOptions(BaseModel, extra="forbid", frozen=True):
    """Shares of people and of time."""

    seed: int = 20260101
    patient_share: float = Field(default=0.15, ge=0, lt=1)
    temporal_share: float = Field(default=0.2, ge=0, lt=1)
    validation_patient_share: float = Field(default=0.1, ge=0, lt=1)
    validation_temporal_share: float = Field(default=0.1, ge=0, lt=1)


def build_splits(series: pd.DataFrame, options: SplitOptions) -> pd.DataFrame:
    """One row per person and split: source, subject, split, start, end (half open).

    Raises `InputError` when a source has too few people for somebody to be left for training.
    """
    spans = series.groupby(["source", "subject"])["time"].agg(["min", "max"]).reset_index()
    rows: list[tuple[str, str, str, pd.Timestamp, pd.Timestamp]] = []
    for source, people in spans.groupby("source"):
        # Seeded by name: who is held out does not depend on what else is loaded beside it.
        draw = np.random.default_rng([options.seed, *str(source).encode()])
        order = draw.permutation(len(people))
        held_out, validation = _head_counts(str(source), len(people), options)
        for rank, person in zip(np.argsort(order), people.itertuples(), strict=True):
            start, end = person.min.floor("D"), (person.max + SLOT).ceil("D")
            if rank < held_out:
                cuts = [("patient", start, end)]
            else:
                cuts = _cut_person(start, end, rank < held_out + validation, options)
            rows += [(str(source), person.subject, *cut) for cut in cuts if cut[1] < cut[2]]
    return pd.DataFrame(rows, columns=["source", "subject", "split", "start", "end"])


def _head_counts(source: str, people: int, options: SplitOptions) -> tuple[int, int]:
    """How many people are held out, and how many of the others are for validation."""
    held_out = _round_share(people, options.patient_share)
    validation = _round_share(people - held_out, options.validation_patient_share)
    if held_out + validation >= people:
        raise InputError(
            f"source '{source}' has {people} person(s): {held_out} held out and {validation} for "
            f"validation leave nobody to train on. Give more people, or set "
            f"splits.patient_share and splits.validation_patient_share to 0."
        )
    return held_out, validation


def _round_share(number: int, share: float) -> int:
    """`share` of `number`, rounded, and at least one where a share is asked for."""
    return max(1, math.floor(number * share + 0.5)) if share > 0 else 0


def _cut_person(
    start: pd.Timestamp, end: pd.Timestamp, validates: bool, options: SplitOptions
) -> list[tuple[str, pd.Timestamp, pd.Timestamp]]:
    temporal = _last_share(start, end, options.temporal_share)
    if validates:
        return [("validation", start, temporal), ("temporal", temporal, end)]
    validation = _last_share(start, temporal, options.validation_temporal_share)
    return [
        ("train", start, validation),
        ("validation", validation, temporal),
        ("temporal", temporal, end),
    ]


def _last_share(start: pd.Timestamp, end: pd.Timestamp, share: float) -> pd.Timestamp:
    """The midnight from which on the last `share` of the days lies, rounded to whole days."""
    days = (end - start) // pd.Timedelta(days=1)
    return end - pd.Timedelta(days=math.floor(days * share + 0.5))
