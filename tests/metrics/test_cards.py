import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.calibration import LEVELS, Spread, draw_paths
from nocturnal_kedro.metrics.cards import (
    NightCard,
    cards_to_json,
    choose_nights,
    in_words,
    make_cards,
    wilson_interval,
)
from nocturnal_kedro.metrics.events import LOWS, PATHS, foresee_lows, low_events
from nocturnal_kedro.metrics.forecasts import NIGHT, QUANTILES, Forecasts

STEPS = 24
SPREAD = Spread(
    np.zeros((STEPS, len(LEVELS))),
    0.97 ** np.abs(np.subtract.outer(np.arange(STEPS), np.arange(STEPS))),
)
# Source, person, split, nights; "a" of "t" is not "a" of "s", and "c" has no night in training.
PEOPLE = (
    ("s", "a", "train", 6), ("s", "b", "train", 4), ("t", "a", "train", 5),
    ("s", "a", "validation", 9), ("s", "b", "validation", 8), ("t", "a", "validation", 7),
    ("s", "a", "temporal", 5), ("s", "c", "patient", 6),
)  # fmt: skip
Run = tuple[Forecasts, pd.DataFrame, pd.DataFrame]


def invent(seed: int = 0) -> Run:
    """Forecasts, what they say of lows, and what came; a tenth of the readings is missing."""
    draw = np.random.default_rng(seed)
    rows = [row[:3] for row in PEOPLE for _ in range(row[3])]
    nights = pd.DataFrame(rows, columns=["source", "subject", "split"])
    nights.insert(2, "origin", pd.date_range("2026-01-05 23:10", periods=len(nights), freq="D"))
    point_NH = draw.uniform(62, 120, (len(nights), 1)) + np.linspace(0, 12, STEPS)
    target_NH = point_NH * np.exp(draw.normal(0, 0.2, (len(nights), 1)))
    target_NH[draw.random(target_NH.shape) < 0.1] = np.nan
    outcomes = nights.assign(
        last_mg_dl=draw.uniform(60, 150, len(nights)).round(1),
        lowest_mg_dl=np.nanmin(target_NH, axis=1),
    )
    for number, (low, threshold) in enumerate(LOWS.items()):
        came = low_events(target_NH, threshold)
        outcomes[f"{low}_happened"], outcomes[f"{low}_onset"] = came.happened_N, came.onset_N
        outcomes[f"{low}_minutes"] = came.minutes_N
        person = nights.groupby(["source", "subject"]).ngroup()
        outcomes[f"{low}_usual"] = 0.05 * (person + 1) / (number + 1)
    asked = (nights["split"] != "train").to_numpy()
    forecasts = Forecasts(
        nights[asked].reset_index(drop=True),
        target_NH[asked],
        point_NH[asked],
        point_NH[asked, :, None] * np.exp(0.25 * norm.ppf(LEVELS)),
        None,
    )
    return forecasts, foresee_lows(forecasts, SPREAD), outcomes


@pytest.fixture(scope="module")
def run() -> Run:
    return invent()


def cards_of(run: Run, chosen: pd.DataFrame) -> list[NightCard]:
    if "chosen" not in chosen:
        chosen = chosen.assign(chosen="by a test")
    return make_cards(*run, SPREAD, chosen, experiment="e", model="m")


@pytest.fixture(scope="module")
def cards(run: Run) -> list[NightCard]:
    """Of every night that was forecast."""
    return cards_of(run, run[0].nights)


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "under 1 in 100"), (0.009, "under 1 in 100"), (0.02, "about 1 in 50 (2 %)"),
        (0.033, "about 1 in 20 (3 %)"), (0.06, "about 1 in 20 (6 %)"),
        (0.07, "about 1 in 10 (7 %)"),
        (0.312, "about 3 in 10 (31 %)"), (0.35, "about 4 in 10 (35 %)"),
        (0.92, "about 9 in 10 (92 %)"), (0.94, "about 19 in 20 (94 %)"),
        (0.98, "about 49 in 50 (98 %)"), (0.995, "over 99 in 100"), (1.0, "over 99 in 100"),
    ],
)  # fmt: skip
def test_a_probability_is_told_no_surer_than_it_is(probability: float, words: str) -> None:
    assert in_words(probability) == words


def test_the_interval_of_few_nights_is_scipys() -> None:
    assert wilson_interval(4, 20) == pytest.approx((0.0807, 0.4160), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    for nights in (1, 2, 7, 60):
        for happened in range(nights + 1):
            expected = binomtest(happened, nights).proportion_ci(method="wilson")
            assert wilson_interval(happened, nights) == pytest.approx(expected, abs=1e-6)


def test_a_card_says_what_was_saved(run: Run, cards: list[NightCard]) -> None:
    forecasts, lows, outcomes = run
    came = outcomes[outcomes["split"] != "train"].reset_index(drop=True)
    assert len({card.low.probability for card in cards}) > 20
    assert 0 < sum(card.happened.low.event for card in cards) < len(cards)
    for at, card in enumerate(cards):
        night = forecasts.nights.iloc[at]
        assert [card.source, card.subject, card.split] == list(
            night[["source", "subject", "split"]]
        )
        assert pd.Timestamp(card.origin) == night["origin"]
        assert card.last_mg_dl == came["last_mg_dl"][at]
        trained = {"sa": 6, "sb": 4, "ta": 5, "sc": 0}
        assert card.training_nights == trained[card.source + card.subject]
        assert card.minutes == tuple(range(5, 5 * STEPS + 1, 5))
        fan = dict(zip(QUANTILES, forecasts.quantiles_NHQ[at].T, strict=True))
        np.testing.assert_allclose(card.median_mg_dl, fan["q0.5"], atol=0.051)
        ends = {50: ("q0.25", "q0.75"), 80: ("q0.1", "q0.9"), 90: ("q0.05", "q0.95")}
        assert [band.share_pct for band in card.bands] == list(ends)
        for band in card.bands:
            lower, upper = (fan[name] for name in ends[band.share_pct])
            np.testing.assert_allclose(band.lower_mg_dl, lower, atol=0.051)
            np.testing.assert_allclose(band.upper_mg_dl, upper, atol=0.051)
        for low in LOWS:
            said, happened = getattr(card, low), getattr(card.happened, low)
            assert said.below_mg_dl == LOWS[low]
            assert said.probability == pytest.approx(lows[f"{low}_probability"][at])
            assert said.expected_minutes == pytest.approx(
                lows[f"{low}_expected_minutes"][at], abs=0.051
            )
            assert said.usual_share == pytest.approx(came[f"{low}_usual"][at])
            assert happened.event == came[f"{low}_happened"][at]
            assert (happened.onset_minutes or 0) == 5 * came[f"{low}_onset"][at]
            assert happened.minutes == came[f"{low}_minutes"][at]
        read = np.array(card.happened.glucose_mg_dl, float)
        np.testing.assert_allclose(read, forecasts.target_NH[at], atol=0.051)


def test_what_is_rarer_is_not_said_to_be_likelier(cards: list[NightCard]) -> None:
    for card in cards:
        assert card.very_low.probability <= card.low.probability
        assert card.very_low.expected_minutes <= card.low.expected_minutes
        narrow, *wider = card.bands
        assert (np.array(narrow.lower_mg_dl) <= card.median_mg_dl).all()
        assert (np.array(narrow.upper_mg_dl) >= card.median_mg_dl).all()
        for wide in wider:
            assert (np.array(wide.lower_mg_dl) <= narrow.lower_mg_dl).all()
            assert (np.array(wide.upper_mg_dl) >= narrow.upper_mg_dl).all()
            narrow = wide
        for said in (card.low, card.very_low):
            if said.onset is not None:
                onset = said.onset
                assert 5 <= onset.from_minutes <= onset.median_minutes <= onset.to_minutes
                assert onset.to_minutes <= 5 * (STEPS - 2)


def test_the_onset_is_that_of_paths_in_mg_dl(run: Run, cards: list[NightCard]) -> None:
    forecasts, lows, _ = run
    paths_NSH = draw_paths(forecasts.quantiles_NHQ, SPREAD, PATHS, seed=0)
    told = 0
    for at, card in enumerate(cards):
        for low, threshold in LOWS.items():
            onset = getattr(card, low).onset
            steps = low_events(paths_NSH[at], threshold).onset_N
            steps = np.sort(steps[steps > 0])
            if len(steps) < 20:
                assert onset is None
                continue
            told += 1
            begun = tuple(5 * steps[-(-tenths * len(steps) // 10) - 1] for tenths in (1, 5, 9))
            assert (onset.from_minutes, onset.median_minutes, onset.to_minutes) == begun
            if len(steps) % 2:  # shares of an even number may add up to a little less than half
                assert 5 * lows[f"{low}_median_onset"][at] == begun[1]
            clock = pd.Timestamp(card.origin) + pd.Timedelta(minutes=onset.from_minutes)
            assert onset.from_clock == f"{clock:%H:%M}"
    assert told > 30


def test_the_note_is_counted_on_validation_nights_told_alike(run: Run) -> None:
    """Nine nights of two people were told 40 to 60 %, two of them went low; three others did."""
    forecasts, lows, outcomes = run
    point_NH = np.full((1, STEPS), 81.0)
    forecasts = replace(forecasts, quantiles_NHQ=forecasts.quantiles_NHQ.copy())
    at = int((forecasts.nights["split"] == "patient").argmax())
    forecasts.quantiles_NHQ[at] = point_NH.T * np.exp(0.22 * norm.ppf(LEVELS))
    lows = foresee_lows(forecasts, SPREAD)
    assert 0.43 < lows["low_probability"][at] < 0.57
    validation = lows["split"] == "validation"
    alike = [0, 1, 2, 3, 4, 5, 9, 10, 11]
    lows.loc[validation, "low_probability"] = 0.05
    lows.loc[alike, "low_probability"] = [0.4, 0.5, 0.599, 0.45, 0.5, 0.5, 0.41, 0.59, 0.5]
    lows.loc[[12, 13, 14], "low_probability"] = [0.6, 0.399, 0.9]  # of other bins
    outcomes = outcomes.copy()
    judged = outcomes.index[outcomes["split"] == "validation"]
    outcomes.loc[judged, "low_happened"] = False
    outcomes.loc[judged[[1, 9, 12, 13, 20]], "low_happened"] = True
    outcomes.loc[outcomes["subject"] == "c", "last_mg_dl"] = 66.0
    [card] = cards_of((forecasts, lows, outcomes), forecasts.nights.iloc[[at]])
    note = card.low.reliability
    assert note.words == (
        "Of 9 validation nights told alike, with a probability of 40 to 60 %, 2 went below 70: "
        "22 %, 95 % interval 6 to 55 %."
    )
    counts = (note.nights, note.low_nights, note.people)
    assert (*counts, note.validation_nights, note.validation_low_nights) == (9, 2, 2, 24, 5)
    assert (note.happened_low_pct, note.happened_pct, note.happened_high_pct) == (6.3, 22.2, 54.7)
    came = outcomes.loc[judged, "low_happened"].to_numpy(bool)
    said, usual = lows.loc[validation, "low_probability"], outcomes.loc[judged, "low_usual"]
    skill = 1 - brier_score_loss(came, said) / brier_score_loss(came, usual)
    assert note.brier_skill == pytest.approx(skill, abs=5e-4)
    assert skill < 0
    assert note.warnings == (
        "Fewer than 20 nights say little.",
        "They are nights of 2 people only.",
        "Below 70 the usual share did as well or better on validation.",
        "Fewer than 10 validation nights went below 70.",
        "No night of this person was in training.",
        "The last reading was below 70 already.",
    )
    false = said[~came].to_numpy()
    lowest = next(c for c in range(1001) if (1000 * false >= c - 0.5).sum() <= 24 / 7)
    assert card.low.alarm_threshold == lowest / 1000
    assert card.low.alarm_rings == (card.low.probability >= lowest / 1000)


def test_what_was_said_too_often_is_warned_of(run: Run) -> None:
    forecasts, lows, outcomes = run
    lows, outcomes = lows.copy(), outcomes.copy()
    [at] = lows.index[lows["split"] == "temporal"][:1]
    lows.loc[lows["split"] == "validation", "low_probability"] = lows["low_probability"][at]
    warned = {}
    for happened in (False, True):
        outcomes.loc[outcomes["split"] == "validation", "low_happened"] = happened
        [card] = cards_of((forecasts, lows, outcomes), forecasts.nights.loc[[at]])
        warned[happened] = card.low.reliability.warnings
    assert 0.2 < lows["low_probability"][at] < 0.8
    assert "Lows came less often than was said." in warned[False]
    assert "Lows came more often than was said." in warned[True]
    assert not set(warned[True]) & {"No night of this person was in training."}


def notes(cards: list[NightCard]) -> list[tuple]:
    return [
        (said.reliability, said.alarm_threshold, said.alarm_rings, said.usual_share)
        for card in cards
        for said in (card.low, card.very_low)
    ]


def test_a_night_does_not_speak_for_itself(run: Run) -> None:
    """Its own outcome changes no note of its card, but one of the others'."""
    forecasts, lows, outcomes = run
    at = outcomes.index[outcomes["split"] == "validation"][3]
    key = outcomes.loc[[at], NIGHT]
    flipped = outcomes.copy()
    flipped.loc[at, ["low_happened", "very_low_happened"]] ^= True
    before, after = (notes(cards_of((forecasts, lows, of), key)) for of in (outcomes, flipped))
    assert before == after
    assert before[0][0].validation_nights == 24 - 1
    others = forecasts.nights[forecasts.nights["split"] == "temporal"]
    before, after = (notes(cards_of((forecasts, lows, of), others)) for of in (outcomes, flipped))
    assert before != after


def test_nights_that_overlap_it_do_not_speak_for_it_either(run: Run) -> None:
    """Two hours of forecast: another person's at the same time does, and one two hours later."""
    forecasts, lows, outcomes = run
    validation = forecasts.nights.index[forecasts.nights["split"] == "validation"]
    origin = forecasts.nights["origin"].copy()
    after = pd.to_timedelta([0, 5, 125, 120, -115, -120], unit="min")
    origin[validation[:6]] = origin[validation[0]] + after
    origin[validation[9]] = origin[validation[0]]
    forecasts = replace(forecasts, nights=forecasts.nights.assign(origin=origin))
    lows, outcomes = lows.assign(origin=origin), outcomes.copy()
    outcomes.loc[outcomes["split"] != "train", "origin"] = origin.to_numpy()
    [card] = cards_of((forecasts, lows, outcomes), forecasts.nights.iloc[[0]])
    assert card.low.reliability.validation_nights == 24 - 3
    # Three of the 21 origins that stay are of one night, so that there are 19; a week has 7.
    judged = outcomes[outcomes["split"] == "validation"].reset_index(drop=True)
    others = ~judged.index.isin([0, 1, 4])
    said = lows["low_probability"][validation].to_numpy()
    false = said[others & ~judged["low_happened"].to_numpy(bool)]
    lowest = next(c for c in range(1001) if (1000 * false >= c - 0.5).sum() <= 19 / 7)
    assert card.low.alarm_threshold == lowest / 1000


def test_notes_are_told_without_any_test_night(run: Run, cards: list[NightCard]) -> None:
    forecasts, lows, outcomes = run
    changed = outcomes.copy()
    tested = changed["split"].isin(["patient", "temporal"])
    changed.loc[tested, ["low_happened", "very_low_happened"]] ^= True
    assert notes(cards_of((forecasts, lows, changed), forecasts.nights)) == notes(cards)
    at = int((lows["split"] == "patient").argmax())
    fewer = lows[(lows["split"] == "validation") | (lows.index == at)]
    [alone] = cards_of((forecasts, fewer, outcomes), forecasts.nights.iloc[[at]])
    assert alone.low == cards[at].low


def test_without_validation_nights_nothing_shows_how_true_it_is(run: Run) -> None:
    forecasts, lows, outcomes = run
    tested = lows[lows["split"] != "validation"]
    for card in cards_of((forecasts, tested, outcomes), tested[NIGHT]):
        note = card.low.reliability
        assert "nothing shows how true this is" in note.words
        assert (note.nights, note.happened_pct, note.happened_low_pct, note.brier_skill) == (
            0, None, None, None,
        )  # fmt: skip
        assert card.low.alarm_threshold is card.low.alarm_rings is None


def test_json_holds_finite_numbers_and_is_read_again(cards: list[NightCard]) -> None:
    written = json.dumps(cards_to_json(cards), allow_nan=False)
    assert [NightCard.model_validate(card) for card in json.loads(written)] == cards
    assert '"glucose_mg_dl": [null' in written or ", null" in written


def test_a_card_takes_no_nan_and_no_other_field(cards: list[NightCard]) -> None:
    [given, *_] = cards_to_json(cards)
    with pytest.raises(ValidationError, match="finite"):
        NightCard.model_validate(given | {"last_mg_dl": float("nan")})
    with pytest.raises(ValidationError, match="Extra"):
        NightCard.model_validate(given | {"last_mmol_l": 5.5})


def test_the_fields_of_a_card_are_those_that_others_read() -> None:
    schema = NightCard.model_json_schema()
    assert list(schema["properties"]) == [
        "disclaimer", "experiment", "model", "source", "subject", "origin", "split", "chosen",
        "training_nights", "last_mg_dl", "minutes", "median_mg_dl", "bands", "low", "very_low",
        "happened",
    ]  # fmt: skip
    assert list(schema["$defs"]["LowTonight"]["properties"]) == [
        "below_mg_dl", "probability", "words", "usual_share", "onset", "expected_minutes",
        "alarm_threshold", "alarm_rings", "reliability",
    ]  # fmt: skip
    assert "medical device" in schema["properties"]["disclaimer"]["default"]


def test_a_night_to_come_does_not_say_what_happened(run: Run) -> None:
    forecasts, lows, outcomes = run
    at = int((forecasts.nights["split"] == "patient").argmax())
    key = forecasts.nights.iloc[[at]]
    past = outcomes[outcomes["subject"] != "c"]
    [card] = cards_of((forecasts, lows, past), key)
    assert card.happened is card.last_mg_dl is None
    # Of a person whom the table does not have, the share of all training nights is usual.
    train = past[past["split"] == "train"]
    assert card.low.usual_share == pytest.approx(train["low_happened"].mean(), abs=5e-4)

    unread = replace(forecasts, target_NH=np.full_like(forecasts.target_NH, np.nan))
    [card] = cards_of((unread, lows, outcomes), key)
    assert card.happened is None
    assert card.last_mg_dl is not None


def test_nights_are_chosen_by_rule(run: Run) -> None:
    forecasts, lows, outcomes = run
    lows, outcomes = lows.copy(), outcomes.copy()
    temporal = forecasts.nights.index[forecasts.nights["split"] == "temporal"]
    patient = forecasts.nights.index[forecasts.nights["split"] == "patient"]
    off = np.zeros(len(lows))
    off[temporal], off[patient] = [5, 1, 4, 2, 3], [1, 2, 6, 3, 5, 4]
    target_NH = forecasts.target_NH.copy()
    target_NH[temporal[2], 8:] = np.nan  # a night of few readings has no smaller error
    forecasts = replace(forecasts, target_NH=target_NH, point_NH=forecasts.target_NH + off[:, None])
    lows.loc[temporal, "low_probability"] = [0.2, 0.9, 0.4, 0.3, 0.1]
    lows.loc[patient, "low_probability"] = [0.9, 0.9, 0.4, 0.3, 0.1, 0.2]
    shift = (outcomes["split"] == "train").sum()
    outcomes.loc[temporal + shift, "low_happened"] = [True, False, True, False, True]
    outcomes.loc[patient + shift, "low_happened"] = [False, False, False, True, False, False]
    chosen = choose_nights(forecasts, lows, outcomes)
    place = forecasts.nights.assign(place=forecasts.nights.groupby("split").cumcount())
    by_rule = {
        (night.split, night.place): night.chosen
        for night in place.merge(chosen, on=["split", *NIGHT]).itertuples()
    }
    highest = "highest probability of those that"
    other = "lowest probability of those that went low"
    assert by_rule == {
        ("temporal", 2): f"{highest} went low",
        ("temporal", 1): f"{highest} did not go low",
        ("temporal", 4): f"{other}, and the middle one by error",
        ("patient", 3): f"{highest} went low, and {other}, and the middle one by error",
        ("patient", 1): f"{highest} did not go low",
    }
    assert list(chosen["split"]) == ["patient"] * 2 + ["temporal"] * 3
    backwards = replace(
        forecasts,
        nights=forecasts.nights[::-1].reset_index(drop=True),
        target_NH=forecasts.target_NH[::-1],
        point_NH=forecasts.point_NH[::-1],
    )
    again = choose_nights(backwards, lows.sample(frac=1, random_state=0), outcomes)
    pd.testing.assert_frame_equal(again, chosen)

    unread = forecasts.target_NH.copy()
    unread[patient[1]] = np.nan
    fewer = choose_nights(replace(forecasts, target_NH=unread), lows, outcomes)
    assert forecasts.nights["origin"][patient[1]] not in set(fewer["origin"])
    assert forecasts.nights["origin"][patient[0]] in set(fewer["origin"])

    never = outcomes.assign(low_happened=False)
    assert set(choose_nights(forecasts, lows, never)["chosen"]) == {
        f"{highest} did not go low", "the middle one by error",
    }  # fmt: skip
    assert choose_nights(forecasts, lows.iloc[:0], outcomes).empty


def test_what_does_not_belong_together_is_told(run: Run) -> None:
    forecasts, lows, outcomes = run
    key = forecasts.nights.iloc[[-1]]
    with pytest.raises(InputError, match=r"forecasts of 'm' hold 35 nights, but not that of .*'x'"):
        cards_of(run, key.assign(subject="x"))
    with pytest.raises(InputError, match="lows of 'm' hold 34 nights"):
        cards_of((forecasts, lows.iloc[:-1], outcomes), key)
    odd = lows.assign(low_probability=(lows["low_probability"] + 0.4) % 1)
    with pytest.raises(InputError, match=r"the saved lows say .* are of different runs"):
        cards_of((forecasts, odd, outcomes), key)
    lost = outcomes[~((outcomes["split"] == "validation") & (outcomes["source"] == "t"))]
    with pytest.raises(InputError, match="of 7 of the 24 validation nights of 'm'"):
        cards_of((forecasts, lows, lost), key)
