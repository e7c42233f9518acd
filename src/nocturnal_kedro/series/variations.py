"""The same data with less to learn from: fewer days, people or readings; the tests stay."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.corpus import SLOW_STEPS, Corpus
from nocturnal_kedro.series.schema import STEP_MINUTES
from nocturnal_kedro.series.splits import DAY

SLOW_MINUTES = SLOW_STEPS * STEP_MINUTES
LEARNT_FROM = ("train", "validation")


def keep_days(splits: pd.DataFrame, share: float) -> pd.DataFrame:
    """Of everybody's training days the last `share`, in whole days and at least one.

    `share` is above 0 and at most 1. The days before are `unused`; the rest stays as it is.
    """
    return _keep_last(splits, lambda days: np.maximum(np.floor(days * share + 0.5), 1))


def most_days(splits: pd.DataFrame, most: int) -> pd.DataFrame:
    """The last `most` days of everybody's training, or all there are; the days before `unused`."""
    return _keep_last(splits, lambda days: np.minimum(days, most))


def _keep_last(splits: pd.DataFrame, of_days: Callable[[np.ndarray], np.ndarray]) -> pd.DataFrame:
    train = splits[splits["split"] == "train"]
    days = ((train["end"] - train["start"]) // DAY).to_numpy()
    cut = train["end"] - pd.to_timedelta(of_days(days), unit="D")
    shorter = splits.copy()
    shorter.loc[train.index, "start"] = cut
    unused = train.assign(split="unused", end=cut)
    return _in_order(pd.concat([shorter, unused[unused["start"] < unused["end"]]]))


def keep_people(splits: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """`number` of those who are trained on, drawn at random; the others' training is `unused`.

    Of one seed the fewer are among the more. Raises `InputError` where there are not so many.
    """
    people = trained_people(splits)
    if not 1 <= number <= len(people):
        raise InputError(
            f"{number} people to train on were asked for, of {len(people)} that there are. Give 1 "
            f"to {len(people)}."
        )
    order = np.random.default_rng(seed).permutation(len(people))
    dropped = {people[place] for place in order[number:]}
    own = _names(splits).isin(dropped) & (splits["split"] == "train")
    return splits.assign(split=splits["split"].mask(own, "unused"))


def learn_from(splits: pd.DataFrame, people: Collection[str]) -> pd.DataFrame:
    """Training and validation of these people alone ("source/subject"); tests as they are.

    Raises `InputError` where none of them is trained on, or none of their days is validation.
    """
    own = _names(splits).isin(people)
    others = splits["split"].isin(LEARNT_FROM) & ~own
    left = splits.assign(split=splits["split"].mask(others, "unused"))
    for split in LEARNT_FROM:
        if not (left["split"] == split).any():
            raise InputError(
                f"of {len(people)} people, {sorted(people)[0]} among them, nobody has days for "
                f"{split}. Give sources with more people, or other shares under 'splits'."
            )
    return left


def trained_people(splits: pd.DataFrame) -> list[str]:
    """'source/subject' of everybody with a training segment, in order."""
    return sorted(set(_names(splits[splits["split"] == "train"])))


def read_every_15_minutes(corpus: Corpus) -> Corpus:
    """The corpus as a 15-minute sensor would have it; who has one already is left alone.

    Of a 5-minute sensor's readings those at 0, 15, 30 and 45 minutes past the hour are kept.
    `covered_T` stays: the same origins are eligible, whatever is read in between.
    """
    fast_P = (corpus.people["sampling_steps"] < SLOW_STEPS).to_numpy()
    whose_T = np.repeat(np.arange(len(fast_P)), corpus.people["last"] - corpus.people["first"])
    dropped_T = fast_P[whose_T] & (corpus.slot_of_day_T % SLOW_STEPS != 0)
    values_TC, observed_TC = np.array(corpus.values_TC), np.array(corpus.observed_TC)
    values_TC[dropped_T, 0] = 0
    observed_TC[dropped_T, 0] = False
    return replace(
        corpus,
        values_TC=values_TC,
        observed_TC=observed_TC,
        people=corpus.people.assign(sampling_steps=SLOW_STEPS),
    )


def only(corpus: Corpus, people: Collection[str]) -> Corpus:
    """The corpus of these people alone ("source/subject"); its arrays are views or copies."""
    kept = corpus.people[_names(corpus.people).isin(people)].reset_index(drop=True)
    if len(kept) == 1:  # a view
        rows: slice | np.ndarray = slice(int(kept["first"].iloc[0]), int(kept["last"].iloc[0]))
    else:
        spans = kept[["first", "last"]].itertuples(index=False)
        rows = np.concatenate([np.arange(first, last) for first, last in spans])
    last = (kept["last"] - kept["first"]).cumsum()
    return replace(
        corpus,
        values_TC=corpus.values_TC[rows],
        observed_TC=corpus.observed_TC[rows],
        late_T=corpus.late_T[rows],
        covered_T=corpus.covered_T[rows],
        slot_of_day_T=corpus.slot_of_day_T[rows],
        people=kept.assign(first=last.shift(fill_value=0), last=last),
    )


def _names(rows: pd.DataFrame) -> pd.Series:
    return rows["source"] + "/" + rows["subject"]


def _in_order(splits: pd.DataFrame) -> pd.DataFrame:
    return splits.sort_values(["source", "subject", "start"], ignore_index=True)
