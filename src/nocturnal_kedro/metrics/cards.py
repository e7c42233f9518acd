"""Night cards: what one model says of one person's night, and how far that may be trusted.

How true a probability is, is told from validation nights alone, without the card's own and those
of the same person that overlap it.

Shapes: N nights, H steps, Q levels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.alarms import RELIABILITY_EDGES, one_a_week
from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART
from nocturnal_kedro.metrics.events import (
    LOWS,
    PATHS,
    brier,
    count,
    event_onsets,
    lowest_threshold,
)
from nocturnal_kedro.metrics.forecasts import AGAIN, NIGHT, PERSON, QUANTILES, Forecasts
from nocturnal_kedro.metrics.point import squared_error
from nocturnal_kedro.series.schema import SLOT, STEP_MINUTES, TEST_SPLITS

BANDS = {50: ("q0.25", "q0.75"), 80: ("q0.1", "q0.9"), 90: ("q0.05", "q0.95")}  # % -> quantiles
ONSET_TENTHS = (1, 5, 9)  # of the paths with an event: from, median, to
FEWEST_PATHS = 20  # with an event; fewer do not say when it begins
FEWEST_ALIKE = 20  # nights; of 4 low ones in 20 the interval is 8 to 42 %
FEWEST_LOWS = 10  # a Brier skill of fewer is chance
# Another machine may draw other paths: shares of two draws differ by 0.022, one standard deviation.
SAME_PROBABILITY = 0.1
DISCLAIMER = "For research: not a medical device, and no ground for treatment."


class _Record(BaseModel):
    """Plain fields that JSON can hold: finite, or null."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Onset(_Record):
    """When the first event begins, of the paths that have one: 8 of 10 lie between from and to."""

    median_minutes: int  # after the origin
    from_minutes: int
    to_minutes: int
    median_clock: str  # local, "03:25"
    from_clock: str
    to_clock: str


class Reliability(_Record):
    """What came of validation nights that were told alike, the card's own left out."""

    words: str
    warnings: tuple[str, ...]
    said_from_pct: float  # told alike: with a probability from here
    said_to_pct: float  # to below here
    nights: int
    low_nights: int
    people: int
    happened_pct: float | None  # None without a night
    happened_low_pct: float | None  # 95 % interval, as if no two nights were of one person
    happened_high_pct: float | None
    validation_nights: int  # all of them, whatever was said
    validation_low_nights: int
    brier_skill: float | None  # on these, against each person's usual share


class LowTonight(_Record):
    """What is said of an event below one threshold."""

    below_mg_dl: float
    probability: float
    words: str
    usual_share: float | None  # of low nights in the person's training nights
    onset: Onset | None  # None where too few paths have an event
    expected_minutes: float  # below the threshold, in an event or not
    alarm_threshold: float | None  # at most one false alarm a week on validation
    alarm_rings: bool | None
    reliability: Reliability


class Came(_Record):
    """What came of a night, by one threshold."""

    event: bool
    onset_minutes: int | None  # after the origin
    minutes: int  # below the threshold, in an event or not


class Happened(_Record):
    """What came of a past night."""

    glucose_mg_dl: tuple[float | None, ...]  # of the card's minutes; None where unobserved
    lowest_mg_dl: float
    low: Came
    very_low: Came


class Band(_Record):
    """A central interval of the calibrated quantiles."""

    share_pct: int
    lower_mg_dl: tuple[float, ...]
    upper_mg_dl: tuple[float, ...]


class NightCard(_Record):
    """One person-night from one model."""

    disclaimer: str = DISCLAIMER
    experiment: str
    model: str
    source: str
    subject: str
    origin: str  # local time, ISO 8601
    split: str
    chosen: str  # by which rule this night is shown
    training_nights: int  # of this person; 0 of somebody never seen
    last_mg_dl: float | None  # newest reading up to the origin
    minutes: tuple[int, ...]  # after the origin
    median_mg_dl: tuple[float, ...]
    bands: tuple[Band, ...]  # narrowest first
    low: LowTonight  # level 1, below 70 mg/dL
    very_low: LowTonight  # level 2, below 54 mg/dL
    happened: Happened | None  # None of a night to come


def choose_nights(forecasts: Forecasts, lows: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Per test split the nights that show what a model can and cannot do, chosen afterwards.

    The highest P(low) of the nights that went low and of those that did not, the lowest P of those
    that went low, and the night in the middle by its squared error. A night that several rules
    choose stands there once. Columns split, chosen, source, subject, origin.
    """
    error_NH = squared_error(forecasts.target_NH, forecasts.point_NH)
    nights = forecasts.nights.assign(
        error=np.nansum(error_NH, axis=1) / np.maximum(forecasts.observed.sum(axis=1), 1)
    )[forecasts.observed.any(axis=1)]
    nights = nights.merge(lows[[*NIGHT, "low_probability"]], on=NIGHT)
    nights = nights.merge(outcomes[[*NIGHT, "low_happened"]], on=NIGHT).sort_values(NIGHT)
    rows = []
    for split in TEST_SPLITS:
        of_split = nights[nights["split"] == split]
        said = of_split.sort_values("low_probability", kind="stable")
        went = said["low_happened"].astype(bool)
        middle = of_split.sort_values("error", kind="stable")
        for why, ranked, place in (
            ("highest probability of those that went low", said[went], -1),
            ("highest probability of those that did not go low", said[~went], -1),
            ("lowest probability of those that went low", said[went], 0),
            ("the middle one by error", middle, round((len(middle) - 1) / 2)),
        ):
            if len(ranked):
                night = ranked.iloc[place][["split", *NIGHT]]
                rows.append({"chosen": why, **night.to_dict()})
    if not rows:
        return pd.DataFrame(columns=["split", "chosen", *NIGHT])
    by_night = pd.DataFrame(rows).groupby(["split", *NIGHT], sort=False)["chosen"]
    return by_night.agg(", and ".join).reset_index()[["split", "chosen", *NIGHT]]


def make_cards(
    forecasts: Forecasts,
    lows: pd.DataFrame,
    outcomes: pd.DataFrame,
    spread: Spread,
    chosen: pd.DataFrame,
    *,
    experiment: str,
    model: str,
) -> list[NightCard]:
    """A card of each row of `chosen`, which has source, subject, origin and why: chosen.

    `lows` are of `events.foresee_lows` with the same spread, validation nights among them, and
    `outcomes` of `outcomes.describe_nights`. A night that is not in `outcomes` is one to come, and
    so is one without a reading: its card does not say what happened.
    """
    at_N = _find(chosen, forecasts.nights, f"forecasts of '{model}'")
    told = lows.iloc[_find(chosen, lows, f"lows of '{model}'")]
    validation = _validation_nights(lows, outcomes, model)
    onset_3N = {
        low: _onset_steps(event_onsets(forecasts.quantiles_NHQ[at_N], spread, threshold), told, low)
        for low, threshold in LOWS.items()
    }
    of_night = outcomes.set_index(NIGHT)
    horizon = forecasts.quantiles_NHQ.shape[1] * SLOT
    cards = []
    for number, (at, night) in enumerate(zip(at_N, chosen.to_dict("records"), strict=True)):
        key = tuple(night[name] for name in NIGHT)
        origin = pd.Timestamp(night["origin"])
        came = of_night.loc[key] if key in of_night.index else None
        own = outcomes[(outcomes[PERSON] == list(key[:2])).all(axis=1)]
        overlaps = (validation["origin"] - origin).abs() < horizon  # as sliding origins may
        overlaps &= (validation[PERSON] == list(key[:2])).all(axis=1)
        others = validation[~overlaps]
        training_nights = int((own["split"] == "train").sum())
        last = None if came is None else _finite(came["last_mg_dl"], 1)
        tonight = {}
        for low in LOWS:
            said = told.iloc[number]
            probability = round(float(said[f"{low}_probability"]), 3)  # a path is a thousandth
            tonight[low] = LowTonight(
                below_mg_dl=LOWS[low],
                probability=probability,
                words=in_words(probability),
                usual_share=_usual_share(own, outcomes, low),
                onset=_onset(onset_3N[low][:, number], origin),
                expected_minutes=round(float(said[f"{low}_expected_minutes"]), 1),
                **_alarm(probability, others, low),
                reliability=_reliability(probability, others, low, training_nights, last),
            )
        cards.append(
            NightCard(
                experiment=experiment,
                model=model,
                source=night["source"],
                subject=night["subject"],
                origin=origin.isoformat(),
                split=forecasts.nights["split"].iloc[at],
                chosen=night["chosen"],
                training_nights=training_nights,
                last_mg_dl=last,
                **_fan(forecasts.quantiles_NHQ[at]),
                low=tonight["low"],
                very_low=tonight["very_low"],
                happened=_happened(came, forecasts.target_NH[at]),
            )
        )
    return cards


def cards_to_json(cards: list[NightCard]) -> list[dict[str, Any]]:
    """Cards as `json.dumps` takes them; `NightCard.model_validate` reads one again."""
    return [card.model_dump(mode="json") for card in cards]


def in_words(probability: float) -> str:
    """A probability no surer than it is.

    Worked: 0.312 is "about 3 in 10 (31 %)", 0.06 "about 1 in 20 (6 %)", 0.004 "under 1 in 100".
    """
    rarer = min(probability, 1 - probability)
    percent = f"({100 * probability:.0f} %)"
    for below, all_of in ((0.01, 100), (0.03, 50), (0.07, 20)):
        if rarer < below:
            rare = probability < 0.5
            told = f"{1 if rare else all_of - 1} in {all_of}"
            if all_of == 100:
                return f"{'under' if rare else 'over'} {told}"
            return f"about {told} {percent}"
    return f"about {math.floor(10 * probability + 0.5)} in 10 {percent}"


def wilson_interval(happened: int, nights: int) -> tuple[float, float]:
    """The 95 % interval of a share, 0 to 1, from few independent nights.

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96: Wilson 1927, J Am Stat Assoc
    22:209. Worked: 4 of 20 give 0.081 to 0.416, none of 20 give 0 to 0.161.
    """
    z, share = 1.959964, happened / nights
    centre = share + z**2 / (2 * nights)
    half = z * math.sqrt(share * (1 - share) / nights + z**2 / (4 * nights**2))
    whole = 1 + z**2 / nights
    return max((centre - half) / whole, 0.0), min((centre + half) / whole, 1.0)


def _find(chosen: pd.DataFrame, table: pd.DataFrame, what: str) -> np.ndarray:
    """The row of each chosen night."""
    at_N = pd.MultiIndex.from_frame(table[NIGHT]).get_indexer(
        pd.MultiIndex.from_frame(chosen[NIGHT])
    )
    if (at_N < 0).any():
        lost = chosen.iloc[int((at_N < 0).argmax())]
        raise InputError(
            f"{what} hold {len(table)} nights, but not that of subject '{lost['subject']}', "
            f"{lost['origin']}, of which a card is asked. Choose nights of this run. {AGAIN}"
        )
    return at_N


def _validation_nights(lows: pd.DataFrame, outcomes: pd.DataFrame, model: str) -> pd.DataFrame:
    """What was said of validation nights, and what came of them."""
    said = lows[lows["split"] == "validation"]
    known = said.merge(outcomes, on=[*NIGHT, "split"])
    if len(known) != len(said):
        raise InputError(
            f"nothing is known of what came of {len(said) - len(known)} of the {len(said)} "
            f"validation nights of '{model}': the frozen table was made anew since. {AGAIN}"
        )
    return known


def _onset_steps(onset_NH: np.ndarray, told: pd.DataFrame, low: str) -> np.ndarray:
    """The step by which so many tenths of the paths with an event have begun it, (3, N).

    0 where too few have one to say. Paths are counted in whole numbers: halves of shares round.
    """
    begun_NH = np.cumsum(np.rint(onset_NH * PATHS).astype(np.int64), axis=1)
    whole_N = begun_NH[:, -1]
    off_N = np.abs(whole_N / PATHS - told[f"{low}_probability"].to_numpy())
    if (off_N > SAME_PROBABILITY).any():
        odd = told.iloc[int(off_N.argmax())]
        raise InputError(
            f"paths give P({low}) {whole_N[off_N.argmax()] / PATHS:.3f} for the night of subject "
            f"'{odd['subject']}', {odd['origin']}, where the saved lows say "
            f"{odd[f'{low}_probability']:.3f}: model and lows are of different runs. {AGAIN}"
        )
    at_3N = np.stack(
        [(10 * begun_NH >= tenths * begun_NH[:, -1:]).argmax(axis=1) + 1 for tenths in ONSET_TENTHS]
    )
    return np.where(whole_N >= FEWEST_PATHS, at_3N, 0)


def _onset(step_3: np.ndarray, origin: pd.Timestamp) -> Onset | None:
    if not step_3[0]:
        return None
    minutes_3 = (STEP_MINUTES * step_3).tolist()
    clock_3 = [f"{origin + pd.Timedelta(minutes=at):%H:%M}" for at in minutes_3]
    return Onset(
        median_minutes=minutes_3[1],
        from_minutes=minutes_3[0],
        to_minutes=minutes_3[2],
        median_clock=clock_3[1],
        from_clock=clock_3[0],
        to_clock=clock_3[2],
    )


def _fan(quantiles_HQ: np.ndarray) -> dict[str, Any]:
    """Median and bands, to a tenth of a mg/dL."""
    of = dict(zip(QUANTILES, quantiles_HQ.T.astype(np.float64).round(1).tolist(), strict=True))
    return {
        "minutes": tuple(STEP_MINUTES * (step + 1) for step in range(len(quantiles_HQ))),
        "median_mg_dl": of["q0.5"],
        "bands": tuple(
            Band(share_pct=share, lower_mg_dl=of[lower], upper_mg_dl=of[upper])
            for share, (lower, upper) in BANDS.items()
        ),
    }


def _usual_share(own: pd.DataFrame, outcomes: pd.DataFrame, low: str) -> float | None:
    """The person's, or of somebody whom the table does not have everybody's."""
    if len(own):
        return _finite(own[f"{low}_usual"].iloc[0], 3)
    return _finite(outcomes.loc[outcomes["split"] == "train", f"{low}_happened"].mean(), 3)


def _alarm(probability: float, others: pd.DataFrame, low: str) -> dict[str, Any]:
    """The alarm of `alarms.rank_alarms`: the lowest threshold with so few false ones."""
    if others.empty:
        return {"alarm_threshold": None, "alarm_rings": None}
    counts = count(
        others[f"{low}_probability"].to_numpy(),
        others[f"{low}_happened"].to_numpy(bool),
        np.zeros(len(others), np.int64),
        1,
    )
    threshold = float(lowest_threshold(counts.pooled(), one_a_week(others))) / PATHS
    rings = bool(probability >= threshold - 0.5 / PATHS)
    return {"alarm_threshold": threshold, "alarm_rings": rings}


def _reliability(
    probability: float,
    others: pd.DataFrame,
    low: str,
    training_nights: int,
    last_mg_dl: float | None,
) -> Reliability:
    """What `others`, which are validation nights, say of a probability."""
    said = others[f"{low}_probability"].to_numpy()
    happened = others[f"{low}_happened"].to_numpy(bool)
    inner = RELIABILITY_EDGES[1:-1]
    bin_number = int(np.searchsorted(inner, probability, side="right"))
    alike = np.searchsorted(inner, said, side="right") == bin_number
    from_pct, to_pct = (
        round(100 * float(edge)) for edge in RELIABILITY_EDGES[bin_number : bin_number + 2]
    )
    nights, low_nights = int(alike.sum()), int(happened[alike].sum())
    people = int(others[alike].groupby(PERSON, observed=True).ngroups)
    skill = _brier_skill(others, low)
    span = f"with a probability of {from_pct} to {to_pct} %"
    words = f"No validation night was told alike, {span}: nothing shows how true this is."
    interval = None
    if nights:
        interval = tuple(100 * end for end in wilson_interval(low_nights, nights))
        words = (
            f"Of {nights} validation {_plural('night', nights)} told alike, {span}, {low_nights} "
            f"went below {LOWS[low]:.0f}: {100 * low_nights / nights:.0f} %, 95 % interval "
            f"{interval[0]:.0f} to {interval[1]:.0f} %."
        )
    warnings = {
        f"Fewer than {FEWEST_ALIKE} nights say little.": 0 < nights < FEWEST_ALIKE,
        f"They are nights of {people} {_plural('person', people)} only.": (
            0 < people < FEWEST_TO_TELL_APART
        ),
        "Lows came less often than was said.": (
            interval is not None and 100 * said[alike].mean() > interval[1]
        ),
        "Lows came more often than was said.": (
            interval is not None and 100 * said[alike].mean() < interval[0]
        ),
        f"Below {LOWS[low]:.0f} the usual share did as well or better on validation.": (
            skill is not None and skill <= 0
        ),
        f"Fewer than {FEWEST_LOWS} validation nights went below {LOWS[low]:.0f}.": (
            happened.sum() < FEWEST_LOWS
        ),
        "No night of this person was in training.": training_nights == 0,
        f"The last reading was below {LOWS[low]:.0f} already.": (
            last_mg_dl is not None and last_mg_dl < LOWS[low]
        ),
    }
    return Reliability(
        words=words,
        warnings=tuple(warning for warning, holds in warnings.items() if holds),
        said_from_pct=from_pct,
        said_to_pct=to_pct,
        nights=nights,
        low_nights=low_nights,
        people=people,
        happened_pct=_finite(100 * low_nights / nights, 1) if nights else None,
        happened_low_pct=None if interval is None else _finite(interval[0], 1),
        happened_high_pct=None if interval is None else _finite(interval[1], 1),
        validation_nights=len(others),
        validation_low_nights=int(happened.sum()),
        brier_skill=skill,
    )


def _brier_skill(nights: pd.DataFrame, low: str) -> float | None:
    """1 - Brier of what was said / of each person's usual share; None where that says nothing."""
    happened = nights[f"{low}_happened"].to_numpy(bool)
    said, usual = (
        brier(nights[f"{low}_{kind}"].to_numpy(), happened).sum()
        for kind in ("probability", "usual")
    )
    return _finite(1 - said / usual, 3) if usual > 0 else None


def _happened(came: pd.Series | None, target_H: np.ndarray) -> Happened | None:
    if came is None or np.isnan(target_H).all():
        return None
    of_lows = {
        low: Came(
            event=bool(came[f"{low}_happened"]),
            onset_minutes=STEP_MINUTES * int(came[f"{low}_onset"]) or None,
            minutes=int(came[f"{low}_minutes"]),
        )
        for low in LOWS
    }
    return Happened(
        glucose_mg_dl=tuple(_finite(value, 1) for value in target_H),
        lowest_mg_dl=round(float(came["lowest_mg_dl"]), 1),
        **of_lows,
    )


def _finite(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _plural(word: str, number: int) -> str:
    if number == 1:
        return word
    return "people" if word == "person" else f"{word}s"
