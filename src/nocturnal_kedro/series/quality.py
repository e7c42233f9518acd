"""What a person's record is like, and what in it is suspect: one row per person."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nocturnal_kedro.series.corpus import CHANNELS, Corpus
from nocturnal_kedro.series.overlap import is_copy
from nocturnal_kedro.series.schema import STEP_MINUTES, STEPS_PER_DAY, STEPS_PER_HOUR

# What is suspect. By chance a fifth of readings in whole mg/dL lie on a straight line.
STRAIGHT_HIGHEST_PCT = 60.0
FLAT_HIGHEST_PCT = 10.0
MEDIAN_MG_DL = (80.0, 300.0)
DAILY_DOSE_U = (5.0, 150.0)
CORRELATION_HIGHEST = 0.0  # true records: -0.6 to 0; with boluses an hour early: about 0
FEWEST_FOR_CORRELATION = 500  # slots

GAP_STEPS = STEPS_PER_HOUR
FASTING_COB_G = 1.0


def measure_people(
    series: pd.DataFrame, corpus: Corpus, tally: pd.DataFrame, overlaps: pd.DataFrame
) -> pd.DataFrame:
    """One row per person, with `findings` in words ("" where nothing is suspect).

    rows_in, rows_dropped (raw rows); days; readings (slots with one); sampling_minutes;
    observed_pct (readings there of those due); gaps (longer than an hour), longest_gap_h;
    duplicates (readings at a time already read); out_of_range (readings no sensor gives);
    clipped_pct; median_mg_dl; straight_pct (readings whose second difference is zero: interpolated
    ones are); flat_pct (in an unchanged hour); daily_dose_u and basal_pct (over the slots with
    insulin on record); insulin_flagged (a part of it is implausible); daily_carbs_g;
    iob_correlation (of insulin on board, while fasting, with the change of glucose over the next
    hour: insulin lowers glucose, so it must be negative); overlap_pct (readings that somebody else
    has too).
    """
    people = pd.DataFrame(
        [
            _measure(series, corpus, person.first, person.last, person.sampling_steps)
            for person in corpus.people.itertuples()
        ]
    )
    people.insert(0, "source", corpus.people["source"])
    people.insert(1, "subject", corpus.people["subject"])
    for position, (name, stage, effect, reason) in enumerate(
        [
            ("rows_in", "read", "in", ""),
            ("rows_dropped", "read", "dropped", ""),
            ("duplicates", "grid", "dropped", "glucose at a time already read"),
            ("out_of_range", "grid", "dropped", "glucose out of any sensor's range"),
        ]
    ):
        people.insert(2 + position, name, _counted(people, tally, stage, effect, reason))
    people["overlap_pct"] = _overlap(people, overlaps)
    copied = _overlap(people, overlaps[is_copy(overlaps)]) > 0
    people["findings"] = [
        _findings(person | {"copied": is_copied})
        for person, is_copied in zip(people.to_dict("records"), copied, strict=True)
    ]
    return people


def _measure(
    series: pd.DataFrame, corpus: Corpus, first: int, last: int, sampling: int
) -> dict[str, Any]:
    glucose = series["glucose_mg_dl"].to_numpy()[first:last]
    at = np.flatnonzero(~np.isnan(glucose))
    values, steps = glucose[at], np.diff(at)
    change = np.diff(values)
    # Three readings one after the other, the sensor's interval apart.
    regular = (steps[1:] == steps[:-1]) & (steps[1:] <= sampling)
    straight = regular & (np.abs(np.diff(change)) < 1e-6)
    gaps = steps[steps > GAP_STEPS]
    iob, cob, insulin, carbs = (
        _channel(corpus, name, first, last) for name in ("iob_u", "cob_g", "insulin_u", "carbs_g")
    )
    basal = series["basal_u_h"].to_numpy()[first:last] * STEP_MINUTES / 60
    dosed = ~np.isnan(insulin)
    dose = insulin[dosed].sum()
    return {
        "days": len(glucose) / STEPS_PER_DAY,
        "readings": len(at),
        "sampling_minutes": sampling * STEP_MINUTES,
        "observed_pct": min(100.0, 100 * len(at) * sampling / len(glucose)),
        "gaps": len(gaps),
        "longest_gap_h": gaps.max() / STEPS_PER_HOUR if len(gaps) else 0.0,
        "clipped_pct": 100 * series["glucose_clipped"].to_numpy()[first:last][at].mean(),
        "median_mg_dl": float(np.median(values)),
        "straight_pct": 100 * straight.sum() / max(regular.sum(), 1),
        "flat_pct": 100 * _in_flat_hours(change, steps, sampling) / len(at),
        "daily_dose_u": dose / dosed.sum() * STEPS_PER_DAY if dosed.any() else np.nan,
        "basal_pct": 100 * basal[dosed].sum() / dose if dose > 0 else np.nan,
        "daily_carbs_g": np.nanmean(carbs) * STEPS_PER_DAY if (~np.isnan(carbs)).any() else np.nan,
        "insulin_flagged": bool(series["insulin_flagged"].to_numpy()[first:last].any()),
        "iob_correlation": _iob_correlation(glucose, iob, cob),
    }


def _channel(corpus: Corpus, name: str, first: int, last: int) -> np.ndarray:
    channel = CHANNELS.index(name)
    values = corpus.values_TC[first:last, channel].astype(np.float64)
    return np.where(corpus.observed_TC[first:last, channel], values, np.nan)


def _in_flat_hours(change: np.ndarray, steps: np.ndarray, sampling: int) -> int:
    """Readings in runs without any change for an hour or longer."""
    same = np.concatenate([[False], (change == 0) & (steps <= sampling), [False]])
    edges = np.flatnonzero(np.diff(same.astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    return int((runs[runs * sampling >= STEPS_PER_HOUR] + 1).sum())


def _iob_correlation(glucose: np.ndarray, iob: np.ndarray, cob: np.ndarray) -> float:
    """Correlation of insulin on board with the change of glucose over the next hour, fasting."""
    change = np.full(len(glucose), np.nan)
    change[:-STEPS_PER_HOUR] = glucose[STEPS_PER_HOUR:] - glucose[:-STEPS_PER_HOUR]
    usable = ~np.isnan(change) & ~np.isnan(iob) & (cob < FASTING_COB_G)
    if usable.sum() < FEWEST_FOR_CORRELATION or iob[usable].std() == 0:
        return float("nan")
    return float(np.corrcoef(iob[usable], change[usable])[0, 1])


def _counted(
    people: pd.DataFrame, tally: pd.DataFrame, stage: str, effect: str, reason: str
) -> np.ndarray:
    rows = tally[
        (tally["stage"] == stage)
        & (tally["effect"] == effect)
        & tally["reason"].str.startswith(reason)
    ]
    counted = rows.groupby(["source", "subject"])["rows"].sum()
    keys = pd.MultiIndex.from_frame(people[["source", "subject"]])
    return counted.reindex(keys, fill_value=0).to_numpy()


def _overlap(people: pd.DataFrame, overlaps: pd.DataFrame) -> np.ndarray:
    """The largest share that a person has in common with anybody."""
    sides = [
        overlaps[["source", "subject", "shared_pct"]].to_numpy(),
        overlaps[["other_source", "other_subject", "other_shared_pct"]].to_numpy(),
    ]
    shares = pd.DataFrame(np.concatenate(sides), columns=["source", "subject", "pct"])
    most = shares.astype({"pct": float}).groupby(["source", "subject"])["pct"].max()
    keys = pd.MultiIndex.from_frame(people[["source", "subject"]])
    return most.reindex(keys, fill_value=0.0).to_numpy()


def _findings(person: dict[str, Any]) -> str:
    found = []
    if person["straight_pct"] > STRAIGHT_HIGHEST_PCT:
        found.append(f"{person['straight_pct']:.0f} % of readings on straight lines: interpolated")
    if person["flat_pct"] > FLAT_HIGHEST_PCT:
        found.append(f"{person['flat_pct']:.0f} % of readings in hours without any change")
    if person["copied"]:
        found.append(f"{person['overlap_pct']:.0f} % of readings are somebody else's too")
    if not MEDIAN_MG_DL[0] <= person["median_mg_dl"] <= MEDIAN_MG_DL[1]:
        found.append(f"median glucose of {person['median_mg_dl']:.0f} mg/dL: wrong unit?")
    if person["insulin_flagged"]:
        found.append("implausible doses of insulin: not used")
    low, high = DAILY_DOSE_U
    if not (np.isnan(person["daily_dose_u"]) or low <= person["daily_dose_u"] <= high):
        found.append(f"{person['daily_dose_u']:.0f} U of insulin a day: wrong unit?")
    if person["iob_correlation"] > CORRELATION_HIGHEST:
        found.append("insulin on board does not lower glucose: wrong times or doses?")
    return "; ".join(found)
