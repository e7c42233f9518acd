"""Low glucose tonight: what happened, what was said of it, and how alarms would have done.

A low event is at least 15 minutes on end below a threshold (Battelino et al. 2023, Lancet Diabetes
Endocrinol 11:42): level 1 below 70, level 2 below 54 mg/dL. It ends with as long at or above it.

Shapes: N nights, H steps, P people, S paths, T thresholds of an alarm, R resamples.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from nocturnal_kedro.metrics.calibration import (
    Spread,
    chance,
    draw_scores,
    normal_score,
    steps_around,
)
from nocturnal_kedro.metrics.forecasts import Forecasts
from nocturnal_kedro.series.schema import LOW_MG_DL, STEP_MINUTES, VERY_LOW_MG_DL

LOWS = {"low": LOW_MG_DL, "very_low": VERY_LOW_MG_DL}  # level 1 and 2, by their name in tables
EVENT_STEPS = 3  # 15 minutes of readings
PROLONGED_STEPS = 24  # an event that lasts longer than two hours
BRIDGED_STEPS = 3  # what lies between two readings at most so far apart is as they are
PATHS = 1000  # a probability is a multiple of their inverse
NIGHTS_A_WEEK = 7
MOST_THRESHOLDS = 200  # that resampled precision is looked at


class LowEvents(NamedTuple):
    """What of each night was low by one threshold."""

    happened_N: np.ndarray  # bool
    onset_N: np.ndarray  # step at which the first event begins, 1 to H; 0 where there is none
    minutes_N: np.ndarray  # all of the night's time below the threshold, in an event or not
    longest_N: np.ndarray  # minutes that the longest event lasts, 0 where there is none


def low_events(glucose_NH: np.ndarray, threshold_mg_dl: float) -> LowEvents:
    """Low events of observed nights in mg/dL, NaN where unobserved.

    Between two readings at most 15 minutes apart the glucose counts as low where both are, so that
    two low readings in a row of a 15-minute sensor are an event, and one is not. Between a low one
    and another it is neither, and an event goes on. Over a longer gap nothing is said, and it ends.

    Worked, every 5 minutes: 80, 69, 68, 66, 75, 90 has an event of 15 minutes that begins at step
    2; 80, 69, 68, 75, 69, 90 has none, and 15 minutes below 70.
    """
    seen_NH = ~np.isnan(glucose_NH)
    below_NH = _bridged(glucose_NH < threshold_mg_dl, seen_NH)
    above_NH = _bridged(glucose_NH >= threshold_mg_dl, seen_NH)
    told_NH = _bridged(seen_NH, seen_NH)  # by a reading, or two close ones on either side
    nights, horizon = below_NH.shape
    run_N, calm_N, since_N = (np.zeros(nights, np.int64) for _ in range(3))
    onset_N, longest_N = np.zeros(nights, np.int64), np.zeros(nights, np.int64)
    for step in range(1, horizon + 1):
        below_N, above_N = below_NH[:, step - 1], above_NH[:, step - 1]
        run_N = np.where(below_N, run_N + 1, 0)
        calm_N = np.where(above_N, calm_N + 1, 0)
        begins_N = (run_N >= EVENT_STEPS) & (since_N == 0)
        since_N[begins_N] = step - EVENT_STEPS + 1
        onset_N = np.where(begins_N & (onset_N == 0), since_N, onset_N)
        # Up to its last low step: what comes back for a moment does not end it.
        lasts_N = np.where((since_N > 0) & below_N, step - since_N + 1, 0)
        longest_N = np.maximum(longest_N, lasts_N)
        since_N[(calm_N >= EVENT_STEPS) | ~told_NH[:, step - 1]] = 0
    return LowEvents(
        onset_N > 0, onset_N, below_NH.sum(axis=1) * STEP_MINUTES, longest_N * STEP_MINUTES
    )


def _bridged(holds_NH: np.ndarray, seen_NH: np.ndarray) -> np.ndarray:
    """Where something holds for a reading, or for both of two close ones around a hole."""
    before_NH, after_NH = steps_around(seen_NH)
    close_NH = (before_NH >= 0) & (after_NH < seen_NH.shape[1])
    close_NH &= after_NH - before_NH <= BRIDGED_STEPS
    both_NH = [
        np.take_along_axis(holds_NH, at_NH.clip(0, seen_NH.shape[1] - 1), axis=1)
        for at_NH in (before_NH, after_NH)
    ]
    return np.where(seen_NH, holds_NH, close_NH & both_NH[0] & both_NH[1])


def event_onsets(
    quantiles_NHQ: np.ndarray,
    spread: Spread,
    threshold_mg_dl: float,
    paths: int = PATHS,
    seed: int = 0,
) -> np.ndarray:
    """The probability that tonight's first low event begins at each step, (N, H), from joint paths.

    Its sum over the night is P(low tonight). A path is below the threshold where its normal score
    is below the threshold's own, so that no path is made in mg/dL.
    """
    return _onsets(normal_score(quantiles_NHQ, threshold_mg_dl), _sort_paths(spread, paths, seed))


class _Paths(NamedTuple):
    """Of each step the paths' normal scores in order, and which paths the lowest k are."""

    scores_HS: np.ndarray
    # A bit for each path, in W words of 64; every night has the same paths, so that those below a
    # threshold are one of S + 1 sets.
    lowest_HKW: np.ndarray


def _sort_paths(spread: Spread, paths: int, seed: int) -> _Paths:
    correlation_HH = np.ascontiguousarray(spread.correlation_HH, np.float64)
    return _sorted_paths(correlation_HH.tobytes(), paths, seed)


@lru_cache(maxsize=2)  # of 12 MB: lows, cards and the next night of a model need the same
def _sorted_paths(correlation: bytes, paths: int, seed: int) -> _Paths:
    correlation_HH = np.frombuffer(correlation).reshape(-1, math.isqrt(len(correlation) // 8))
    scores_SH = draw_scores(Spread(np.empty(0), correlation_HH), paths, seed)
    rank = np.arange(paths)
    lowest = []
    for scores_S in scores_SH.T:
        is_lowest = np.zeros((paths + 1, -(-paths // 64) * 64), bool)
        is_lowest[:, np.argsort(scores_S)] = np.arange(paths + 1)[:, None] > rank
        lowest.append(np.packbits(is_lowest, axis=1).view(np.uint64))
    return _Paths(np.sort(scores_SH, axis=0).T.copy(), np.stack(lowest))


def _onsets(threshold_NH: np.ndarray, paths: _Paths) -> np.ndarray:
    onset_NH = np.zeros(threshold_NH.shape)
    recent: list[np.ndarray] = []  # which paths are below, of the last steps
    started_NW = np.zeros((), np.uint64)
    for step, (scores_S, lowest_KW) in enumerate(zip(*paths, strict=True)):
        below_NW = lowest_KW[np.searchsorted(scores_S, threshold_NH[:, step])]
        recent = [*recent[1 - EVENT_STEPS :], below_NW]
        if len(recent) == EVENT_STEPS:
            begins_NW = np.bitwise_and.reduce(recent) & ~started_NW
            started_NW = started_NW | begins_NW
            begun_N = np.bitwise_count(begins_NW).sum(axis=1, dtype=np.int64)
            onset_NH[:, step - EVENT_STEPS + 1] = begun_N / len(scores_S)
    return onset_NH


def median_onset(onset_NH: np.ndarray) -> np.ndarray:
    """The step by which half of the paths with an event have begun it, (N,); 0 without any."""
    # Whole paths: sums of their shares would miss the half of an even number by rounding.
    begun_NH = np.cumsum(np.rint(onset_NH * PATHS), axis=1)
    at_N = (begun_NH >= begun_NH[:, -1:] / 2).argmax(axis=1) + 1
    return np.where(begun_NH[:, -1] > 0, at_N, 0)


def foresee_lows(forecasts: Forecasts, spread: Spread) -> pd.DataFrame:
    """What is said of each night's lows: source, subject, origin, split, and for each of LOWS
    `low_…` or `very_low_…`: probability (of an event tonight), median_onset (the step by which
    half of the paths with an event have begun it, 0 without any), expected_minutes (below it).
    """
    told = forecasts.nights.copy()
    paths = _sort_paths(spread, PATHS, seed=0)
    for name, threshold in LOWS.items():
        threshold_NH = normal_score(forecasts.quantiles_NHQ, threshold)
        onset_NH = _onsets(threshold_NH, paths)
        told[f"{name}_probability"] = onset_NH.sum(axis=1)
        told[f"{name}_median_onset"] = median_onset(onset_NH)
        told[f"{name}_expected_minutes"] = chance(threshold_NH).sum(axis=1) * STEP_MINUTES
    return told


class Counts(NamedTuple):
    """Nights by what was said of them: with an event and without one, by T probabilities.

    The probability of column t is t / (T - 1). Leading axes are people, or none.
    """

    events: np.ndarray  # (..., T)
    others: np.ndarray  # (..., T)

    @property
    def nights(self) -> np.ndarray:
        """How many there are, (...)."""
        return self.events.sum(axis=-1) + self.others.sum(axis=-1)

    def pooled(self) -> Counts:
        """Everybody's together, (T,)."""
        return Counts(self.events.sum(axis=0), self.others.sum(axis=0))


def count(
    probability_N: np.ndarray, happened_N: np.ndarray, person_N: np.ndarray, people: int
) -> Counts:
    """Every person's nights by what was said of them, (P, T): all that alarms are judged by."""
    columns = PATHS + 1
    at_N = person_N * columns + np.rint(probability_N * PATHS).astype(np.int64)
    events, others = (
        np.bincount(at_N[chosen_N], minlength=people * columns).reshape(people, columns)
        for chosen_N in (happened_N, ~happened_N)
    )
    return Counts(events.astype(np.float64), others.astype(np.float64))


def auroc(counts: Counts) -> np.ndarray:
    """P(a night with an event was given the higher probability than one without); ties half.

    The area under the receiver operating characteristic: Hanley & McNeil 1982, Radiology 143:29.
    NaN where one of both is absent. Worked: events at 0.2 and 0.6, others at 0.2 and 0.1: of four
    pairs three and a half are in order, 0.875.
    """
    under = np.cumsum(counts.others, axis=-1) - counts.others / 2
    pairs = counts.events.sum(axis=-1) * counts.others.sum(axis=-1)
    return _ratio((counts.events * under).sum(axis=-1), pairs)


def tabulate(counts: Counts) -> pd.DataFrame:
    """Counts by person as rows: person (number), column, events, others; where there is a night."""
    person, column = np.nonzero(counts.events + counts.others)
    kept = {name: of[person, column] for name, of in counts._asdict().items()}
    return pd.DataFrame({"person": person, "column": column, **kept})


def from_table(rows: pd.DataFrame, people: int) -> Counts:
    """What `tabulate` was given."""
    shape = people, PATHS + 1
    at = np.ravel_multi_index((rows["person"].to_numpy(), rows["column"].to_numpy()), shape)
    return Counts(
        *(
            np.bincount(at, rows[name], minlength=shape[0] * shape[1]).reshape(shape)
            for name in Counts._fields
        )
    )


def resampled_auroc(counts: Counts, draws_RP: np.ndarray) -> np.ndarray:
    """`auroc` of everybody's nights, people drawn as often as `draws_RP` says, (R,).

    Pairs in order of two people count as often as both were drawn, so that one matrix product
    tells all resamples.
    """
    under_PT = np.cumsum(counts.others, axis=1) - counts.others / 2
    in_order_PP = counts.events @ under_PT.T
    events_R, others_R = (draws_RP @ of.sum(axis=1) for of in counts)
    return _ratio(((draws_RP @ in_order_PP) * draws_RP).sum(axis=1), events_R * others_R)


def average_precision(counts: Counts) -> np.ndarray:
    """Mean precision over the events, each at the threshold that just finds it; NaN without one.

    The area under precision and recall as a step function (Davis & Goadrich 2006, ICML), to be
    read beside the base rate, which knows nothing and has. Worked: events at 0.2 and 0.6, others
    at 0.2 and 0.1: precision 1 and 2/3, mean 0.833.
    """
    found = at_least(counts.events)
    precision = _ratio(found, found + at_least(counts.others), 0.0)
    return _ratio((counts.events * precision).sum(axis=-1), counts.events.sum(axis=-1))


def resampled_average_precision(counts: Counts, draws_RP: np.ndarray) -> np.ndarray:
    """`average_precision` of everybody's nights, people drawn as often as `draws_RP` says, (R,).

    Of more than MOST_THRESHOLDS different ones an equal share of the events lies between two, and
    counts with the precision at the lower one.
    """
    events_T = counts.events.sum(axis=0)
    at = np.flatnonzero(events_T)
    if len(at) > MOST_THRESHOLDS:
        shares = np.linspace(0, events_T.sum(), MOST_THRESHOLDS, endpoint=False)
        at = np.unique(at[np.searchsorted(np.cumsum(events_T[at]), shares, side="right")])
    draws = draws_RP.astype(np.float32)  # whole numbers, which 32 bits hold up to 16 million
    found_RK, false_RK = (draws @ at_least(of_PT)[:, at].astype(np.float32) for of_PT in counts)
    events_RK = found_RK - np.pad(found_RK[:, 1:], ((0, 0), (0, 1)))
    precision_RK = found_RK / np.maximum(found_RK + false_RK, 1)
    whole_R = draws_RP @ counts.events.sum(axis=1)
    return _ratio(np.einsum("rk,rk->r", events_RK, precision_RK), whole_R)


def at_least(count_T: np.ndarray) -> np.ndarray:
    """Nights with an alarm, by its threshold: those with that probability or a higher one."""
    return np.cumsum(count_T[..., ::-1], axis=-1)[..., ::-1]


def brier(probability_N: np.ndarray, happened_N: np.ndarray) -> np.ndarray:
    """(p - y)^2 of each night, y 1 where it happened: Brier 1950, Mon Weather Rev 78:1.

    Worked: 0.3 said of an event is 0.49, of none 0.09.
    """
    return (np.asarray(probability_N) - happened_N) ** 2


class Alarms(NamedTuple):
    """How nights with an alarm did, by its threshold; T thresholds of t / (T - 1)."""

    threshold_T: np.ndarray
    sensitivity: np.ndarray  # share of the events that had an alarm
    precision: np.ndarray  # share of the alarms that had an event; NaN without an alarm
    f1: np.ndarray
    false_alarms_per_night: np.ndarray  # alarms without an event, by all nights counted
    # Vickers & Elkin 2006, Med Decis Making 26:565: true alarms less false ones, these weighed by
    # the odds of the threshold, by all nights; NaN at 1. To alarm never is 0.
    net_benefit: np.ndarray
    net_benefit_always: np.ndarray  # of an alarm each night


def alarms(counts: Counts) -> Alarms:
    """Every alarm that rings at P(event tonight) >= a threshold."""
    columns = counts.events.shape[-1]
    threshold_T = np.arange(columns) / (columns - 1)
    true, false = at_least(counts.events), at_least(counts.others)
    events, nights = counts.events.sum(axis=-1)[..., None], counts.nights[..., None]
    odds_T = _ratio(threshold_T, 1 - threshold_T)
    return Alarms(
        threshold_T,
        sensitivity=_ratio(true, events),
        precision=_ratio(true, true + false),
        f1=_ratio(2 * true, true + false + events),
        false_alarms_per_night=_ratio(false, nights),
        net_benefit=_ratio(true - odds_T * false, nights),
        net_benefit_always=_ratio(events - odds_T * (nights - events), nights),
    )


def lowest_threshold(counts: Counts, most_false_alarms: float) -> np.ndarray:
    """The lowest threshold's column with at most so many false alarms a patient-night, (...).

    There the most events are found: sensitivity falls as the threshold rises.
    """
    allowed = _ratio(at_least(counts.others), counts.nights[..., None]) <= most_false_alarms
    last = counts.events.shape[-1] - 1
    return np.where(allowed.any(axis=-1), allowed.argmax(axis=-1), last)


def _ratio(part: np.ndarray, whole: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(whole.shape, otherwise), where=whole > 0)
