"""Who and when is for training: two hold-outs and a validation cut, in one frozen table.

`patient` holds people never seen, `temporal` the last share of everybody else. `validation` is
cut from what remains the same two ways: some people wholly, and the last share of the others.
Boundaries fall on local midnights; no window crosses one. Training days beyond a cap or a
source's share are `unused`, so that the table names every day of everybody.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, field_validator

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.series.grid import person_starts
from nocturnal_kedro.series.schema import SLOT, Words

DAY = pd.Timedelta(days=1)


class SplitOptions(BaseModel, extra="forbid", frozen=True):
    """Shares of people and of time."""

    seed: int = 20260101
    patient_share: float = Field(default=0.15, ge=0, lt=1)
    temporal_share: float = Field(default=0.2, ge=0, lt=1)
    validation_patient_share: float = Field(default=0.1, ge=0, lt=1)
    validation_temporal_share: float = Field(default=0.1, ge=0, lt=1)
    # Exactly these are `patient`, and nobody is drawn: `source/subject`, or a whole source.
    hold_out: Words = ()
    most_train_days: int | None = Field(default=None, ge=1)  # of one person, the last ones
    source_shares: dict[str, float] = {}  # of all training days; empty: all there are

    @field_validator("source_shares")
    @classmethod
    def _positive(cls, shares: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in shares.values()):
            raise ValueError("every share must be above 0; leave a source out of `sources` instead")
        return shares


class _Segment(NamedTuple):
    source: str
    subject: str
    split: str
    start: pd.Timestamp
    end: pd.Timestamp


def build_splits(series: pd.DataFrame, options: SplitOptions) -> pd.DataFrame:
    """One row per person and split: source, subject, split, start, end (half open).

    Raises `InputError` on a name in `hold_out` or `source_shares` that is not there, and when
    nobody is left for training.
    """
    return _cut(_spans(series), options)


def recut_splits(splits: pd.DataFrame, options: SplitOptions) -> pd.DataFrame:
    """The same days of the same people in other splits, as `build_splits` would cut them."""
    spans = splits.groupby(["source", "subject"], sort=True).agg({"start": "min", "end": "max"})
    return _cut(spans.assign(end=spans["end"] - SLOT).reset_index(), options)


def _cut(spans: pd.DataFrame, options: SplitOptions) -> pd.DataFrame:
    held_out = _named(spans, options.hold_out)
    segments: list[_Segment] = []
    for source, people in spans.groupby("source"):
        # Seeded by name: who is held out does not depend on what else is loaded beside it.
        draw = np.random.default_rng([options.seed, *str(source).encode()])
        people = people.iloc[draw.permutation(len(people))]
        if options.hold_out:
            people = people.assign(held_out=people.index.isin(held_out))
            people = people.sort_values("held_out", ascending=False, kind="stable")
            patients = int(people["held_out"].sum())
        else:
            patients = _round_share(len(people), options.patient_share)
        validation = _round_share(len(people) - patients, options.validation_patient_share)
        _require_trainees(str(source), len(people), patients, validation, options)
        for rank, person in enumerate(people.itertuples()):
            start, end = person.start.floor("D"), (person.end + SLOT).ceil("D")
            if rank < patients:
                cuts = [("patient", start, end)]
            else:
                cuts = _cut_person(start, end, rank < patients + validation, options)
            segments += [_Segment(str(source), person.subject, *c) for c in cuts if c[1] < c[2]]
    splits = _thin_training(segments, options)
    return splits.sort_values(["source", "subject", "start"], ignore_index=True)


def _spans(series: pd.DataFrame) -> pd.DataFrame:
    """First and last slot of every person."""
    starts = person_starts(series)
    ends = np.append(starts[1:], len(series)) - 1
    spans = series[["source", "subject"]].iloc[starts].astype(str).reset_index(drop=True)
    spans["start"] = series["time"].to_numpy()[starts]
    spans["end"] = series["time"].to_numpy()[ends]
    return spans


def _named(spans: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """The rows of `spans` that `names` name, as `source/subject` or as a whole source."""
    people = spans["source"] + "/" + spans["subject"]
    known = {*people, *spans["source"]}
    for name in names:
        require_known("person or source in splits.hold_out", name, known)
    return spans.index[people.isin(names) | spans["source"].isin(names)].to_numpy()


def _require_trainees(
    source: str, people: int, patients: int, validation: int, options: SplitOptions
) -> None:
    """Somebody is left to train on, unless a whole source was asked to be held out."""
    if patients + validation < people or source in options.hold_out:
        return
    raise InputError(
        f"source '{source}' has {people} person(s): {patients} held out and {validation} for "
        f"validation leave nobody to train on. Give more people, set splits.patient_share and "
        f"splits.validation_patient_share to 0, or name the whole source in splits.hold_out."
    )


def _round_share(number: int, share: float) -> int:
    """`share` of `number`, rounded, and at least one where a share is asked for."""
    return max(1, math.floor(number * share + 0.5)) if share > 0 and number else 0


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
    days = (end - start) // DAY
    return end - pd.Timedelta(days=math.floor(days * share + 0.5))


def _thin_training(segments: list[_Segment], options: SplitOptions) -> pd.DataFrame:
    """The table of splits, with the training days that are too many cut off as `unused`."""
    splits = pd.DataFrame(segments, columns=list(_Segment._fields))
    train = splits[splits["split"] == "train"]
    if train.empty:
        raise InputError(
            "every person is held out and nobody is left to train on. Leave somebody out of "
            "splits.hold_out, or add a source."
        )
    days = ((train["end"] - train["start"]) // DAY).clip(upper=options.most_train_days)
    if options.source_shares:
        days = _share_out(days, train["source"], options.source_shares)
    cut = train["end"] - days * DAY
    splits.loc[train.index, "start"] = cut
    unused = train.assign(split="unused", end=cut)
    kept = pd.concat([splits, unused], ignore_index=True)
    return kept[kept["start"] < kept["end"]]


def _share_out(days: pd.Series, source: pd.Series, shares: dict[str, float]) -> pd.Series:
    """Fewer days, so that each source has its share: the people with most days give first."""
    available = days.groupby(source).sum()
    for name in shares:
        require_known("source in splits.source_shares", name, available.index)
    lacking = sorted(set(available.index) - set(shares))
    if lacking:
        raise InputError(
            f"splits.source_shares names no share for {', '.join(lacking)}; give every source that "
            f"has people to train on one: {', '.join(available.index)}."
        )
    wanted = pd.Series(shares).reindex(available.index)
    budget = np.floor((available / wanted).min() * wanted + 1e-9).astype(int)
    for name in budget.index[budget < 1]:
        raise InputError(
            f"splits.source_shares leaves source '{name}' not one of its {available[name]} "
            f"training days. Give it a larger share, or leave it out of sources."
        )
    capped = [_cap_sum(own, int(budget[name])) for name, own in days.groupby(source)]
    return pd.concat(capped).reindex(days.index)


def _cap_sum(days: pd.Series, budget: int) -> pd.Series:
    """`days` cut so that they sum to `budget`: at one cap, and one more for the first above it."""
    caps = np.arange(days.max() + 1)
    sums = np.minimum(days.to_numpy()[:, None], caps).sum(axis=0)
    cap = int(caps[sums <= budget].max())
    kept = days.clip(upper=cap)
    above = kept.index[days > cap][: budget - int(kept.sum())]
    kept[above] += 1
    return kept
