import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from nocturnal_kedro.metrics.calibration import (
    Spread,
    calibrate,
    draw_paths,
    fit_spread,
    probability,
)
from nocturnal_kedro.metrics.events import (
    LOWS,
    PATHS,
    Counts,
    alarms,
    auroc,
    average_precision,
    brier,
    count,
    event_onsets,
    foresee_lows,
    low_events,
    lowest_threshold,
    median_onset,
    resampled_auroc,
    resampled_average_precision,
)

from .invented import laid_out

NAN = np.nan


def read_aloud(night: list[float], threshold: float) -> tuple[int, int, int]:
    """Onset, minutes and longest of one night, as the consensus says it, slot by slot."""
    told = []
    for slot, value in enumerate(night):
        if value == value:
            told.append("low" if value < threshold else "not low")
            continue
        before = [k for k in range(slot) if night[k] == night[k]]
        after = [k for k in range(slot, len(night)) if night[k] == night[k]]
        if not before or not after or after[0] - before[-1] > 3:
            told.append("nothing")
        elif night[before[-1]] < threshold and night[after[0]] < threshold:
            told.append("low")
        elif night[before[-1]] >= threshold and night[after[0]] >= threshold:
            told.append("not low")
        else:
            told.append("either")
    events, slot = [], 0
    while slot < len(told):
        if told[slot : slot + 3] != ["low"] * 3:
            slot += 1
            continue
        end = slot
        while end < len(told) and told[end] != "nothing" and told[end : end + 3] != ["not low"] * 3:
            end += 1
        last_low = max(k for k in range(slot, end) if told[k] == "low")
        events.append((slot + 1, 5 * (last_low - slot + 1)))
        slot = end
    onset = events[0][0] if events else 0
    return onset, 5 * told.count("low"), max((lasts for _, lasts in events), default=0)


def first_of(night: list[float], threshold: float = 70.0) -> tuple[int, int, int]:
    got = low_events(np.array([night], float), threshold)
    assert got.happened_N[0] == (got.onset_N[0] > 0)
    return int(got.onset_N[0]), int(got.minutes_N[0]), int(got.longest_N[0])


@pytest.mark.parametrize(
    ("night", "expected"),
    [
        ([80, 69, 68, 66, 75, 90], (2, 15, 15)),
        ([80, 69, 68, 75, 69, 90], (0, 15, 0)),
        ([69.9, 70, 69.9, 69.9, 69.9], (3, 20, 15)),  # 70 is not low
        ([60, 60, 60, 80, 80, 60, 80, 80, 80, 60], (1, 25, 30)),  # ten minutes do not end it
        ([60, 60, 60, 80, 80, 80, 60, 60, 60, 60], (1, 35, 20)),  # a quarter of an hour does
        ([NAN, 60, NAN, NAN, 65, NAN, NAN, 90], (2, 20, 20)),  # two readings of a slow sensor
        ([NAN, 90, NAN, NAN, 65, NAN, NAN, 90], (0, 5, 0)),
        ([60, NAN, NAN, NAN, 60, 60], (0, 15, 0)),  # 20 minutes without a reading
        ([60, NAN, 60, NAN, 80, NAN, NAN, 60, 60], (1, 25, 45)),  # one high does not end it
        ([60, NAN, 60, NAN, 80, NAN, NAN, 80, 60], (1, 20, 15)),
        ([NAN, NAN, NAN], (0, 0, 0)),
    ],
)
def test_low_events_by_hand(night: list[float], expected: tuple[int, int, int]) -> None:
    assert first_of(night) == expected == read_aloud(night, 70.0)


@st.composite
def nights(draw: st.DrawFn) -> list[float]:
    """Stretches of glucose seen by a 5- or 15-minute sensor that loses readings."""
    steps = st.integers(1, 4) | st.integers(1, 30)
    stretch = st.tuples(st.sampled_from([45.0, 53.9, 54.0, 69.9, 70.0, 120.0]), steps)
    every, phase = draw(st.sampled_from([(1, 0), (3, 0), (3, 1), (3, 2)]))
    night = [value for value, steps in draw(st.lists(stretch, min_size=1, max_size=10))
             for _ in range(steps)]  # fmt: skip
    share = draw(st.sampled_from([0.0, 0.1, 0.3]))
    lost = np.random.default_rng(draw(st.integers(0, 1000))).random(len(night)) < share
    return [
        value if slot % every == phase and not lost[slot] else NAN
        for slot, value in enumerate(night)
    ]


@given(nights(), st.sampled_from([54.0, 70.0]))
@example([60.0] * 25, 70.0)
def test_low_events_are_those_of_the_definition_read_aloud(
    night: list[float], threshold: float
) -> None:
    assert first_of(night, threshold) == read_aloud(night, threshold)


def test_nights_are_judged_one_by_one() -> None:
    draw = np.random.default_rng(0)
    glucose = 75 + draw.normal(0, 6, (300, 60)).cumsum(axis=1) / 3
    glucose[draw.random(glucose.shape) < 0.2] = NAN
    got = low_events(glucose, 70.0)
    expected = [read_aloud(list(night), 70.0) for night in glucose]
    np.testing.assert_array_equal(
        np.stack([got.onset_N, got.minutes_N, got.longest_N], axis=1), expected
    )
    assert 50 < got.happened_N.sum() < 250
    order = draw.permutation(300)
    np.testing.assert_array_equal(low_events(glucose[order], 70.0).onset_N, got.onset_N[order])


@pytest.fixture(scope="module")
def foreseen() -> tuple[np.ndarray, Spread]:
    """Quantiles of a few nights near 70 mg/dL, and how the steps of walks hang together."""
    draw = np.random.default_rng(1)
    walk = 85 + draw.normal(0, 5, (400, 14)).cumsum(axis=1)
    spread = fit_spread(np.full_like(walk, 85.0), None, walk, np.arange(400) % 20)
    return calibrate(draw.normal(78, 8, (6, 14)), None, spread), spread


def test_onsets_are_those_of_the_paths(foreseen: tuple[np.ndarray, Spread]) -> None:
    """Slowly: every path in mg/dL, and the first three of its steps on end that are below."""
    quantiles, spread = foreseen
    for paths, threshold in ((200, 70.0), (64, 80.0)):
        drawn_NSH = draw_paths(quantiles, spread, paths, seed=3)
        expected = np.zeros((6, 14))
        for night in range(6):
            for path in drawn_NSH[night]:
                runs = [k for k in range(12) if (path[k : k + 3] < threshold).all()]
                if runs:
                    expected[night, runs[0]] += 1 / paths
        got = event_onsets(quantiles, spread, threshold, paths, seed=3)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert 0.1 < got.sum() / 6 < 0.9
        assert (got[:, :12].sum(axis=0) > 0).all()


def test_median_onset_is_the_median_of_the_paths_with_an_event() -> None:
    onset = np.array([[0.1, 0.05, 0.2, 0.05], [0, 0, 0, 0], [0.25, 0, 0, 0.25], [0, 0, 0, 1]])
    np.testing.assert_array_equal(median_onset(onset), [3, 0, 1, 4])
    begun = np.repeat([1, 2, 3, 4], [100, 50, 200, 50])
    assert median_onset(onset)[0] == np.median(begun)


def test_foreseen_lows_add_up() -> None:
    forecasts = laid_out(horizon=20)
    forecasts.quantiles_NHQ[:] -= forecasts.quantiles_NHQ.mean(axis=(1, 2), keepdims=True) - 75
    steps = np.arange(20)
    spread = Spread(np.zeros((20, 21)), 0.95 ** np.abs(np.subtract.outer(steps, steps)))
    told = foresee_lows(forecasts, spread)
    assert list(told.columns[:4]) == ["source", "subject", "origin", "split"]
    for name, threshold in LOWS.items():
        onset = event_onsets(forecasts.quantiles_NHQ, spread, threshold)
        np.testing.assert_allclose(told[f"{name}_probability"], onset.sum(axis=1))
        np.testing.assert_array_equal(told[f"{name}_median_onset"], median_onset(onset))
        below = probability(forecasts.quantiles_NHQ, threshold)
        np.testing.assert_allclose(told[f"{name}_expected_minutes"], 5 * below.sum(axis=1))
    assert (told["very_low_probability"] < told["low_probability"]).all()
    alone = foresee_lows(forecasts, spread._replace(correlation_HH=np.eye(20)))
    assert (alone["low_probability"] != told["low_probability"]).any()


def invent_nights(
    seed: int = 0, nights: int = 120, people: int = 7, rate: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(event) in thousandths with many ties, whether it came, and whose night it was."""
    draw = np.random.default_rng(seed)
    happened = draw.random(nights) < rate
    happened[:2] = True, False
    said = np.clip(draw.beta(2, 4, nights) + 0.15 * happened, 0, 1)
    return np.round(said, draw.integers(1, 4)), happened, draw.integers(0, people, nights)


def counts_of(said: np.ndarray, happened: np.ndarray) -> Counts:
    return count(said, happened, np.zeros(len(said), int), 1).pooled()


def test_by_hand() -> None:
    counts = counts_of(np.array([0.2, 0.6, 0.2, 0.1]), np.array([True, True, False, False]))
    assert auroc(counts) == pytest.approx(0.875)
    assert average_precision(counts) == pytest.approx((1 + 2 / 3) / 2)
    np.testing.assert_allclose(brier(np.array([0.3, 0.3]), np.array([True, False])), [0.49, 0.09])
    at = alarms(counts)
    # From 0.2 on three nights are alarmed, one of them for nothing.
    assert at.sensitivity[200] == 1
    assert at.precision[200] == pytest.approx(2 / 3)
    assert at.f1[200] == pytest.approx(0.8)
    assert at.false_alarms_per_night[200] == 0.25
    assert at.net_benefit[200] == pytest.approx((2 - 1 * 0.2 / 0.8) / 4)
    assert at.net_benefit[0] == 0.5  # of an alarm each night: the base rate
    assert np.isnan(at.precision[601])
    assert (at.net_benefit[601:1000] == 0).all()
    assert at.net_benefit_always[200] == pytest.approx(0.5 - 0.5 * 0.2 / 0.8)
    assert np.isnan([at.net_benefit[1000], at.net_benefit_always[1000]]).all()  # no odds of 1


def test_without_an_event_or_without_another_night_nothing_is_said() -> None:
    said = np.array([0.2, 0.4])
    for happened in (np.array([True, True]), np.array([False, False])):
        assert np.isnan(auroc(counts_of(said, happened)))
    assert np.isnan(average_precision(counts_of(said, np.array([False, False]))))


@given(st.integers(0, 10_000), st.integers(2, 200), st.floats(0.05, 0.9))
def test_ranks_are_those_of_scikit_learn(seed: int, nights: int, rate: float) -> None:
    said, happened, person = invent_nights(seed, nights, rate=rate)
    pooled = count(said, happened, person, 7).pooled()
    assert auroc(pooled) == pytest.approx(roc_auc_score(happened, said))
    assert average_precision(pooled) == pytest.approx(average_precision_score(happened, said))
    assert brier(said, happened).mean() == pytest.approx(brier_score_loss(happened, said))
    assert pooled.nights == nights


def test_alarms_are_those_of_scikit_learn_at_every_threshold() -> None:
    said, happened, _ = invent_nights()
    at = alarms(counts_of(said, happened))
    np.testing.assert_allclose(at.threshold_T, np.arange(PATHS + 1) / PATHS)
    for column in (0, 1, 50, 137, 200, 333, 400, 520):
        rung = np.rint(said * PATHS) >= column
        for got, score in (
            (at.sensitivity, recall_score), (at.precision, precision_score), (at.f1, f1_score)
        ):  # fmt: skip
            assert got[column] == pytest.approx(score(happened, rung))
        false = (rung & ~happened).mean()
        assert at.false_alarms_per_night[column] == pytest.approx(false)
        odds = column / (PATHS - column)
        assert at.net_benefit[column] == pytest.approx((rung & happened).mean() - odds * false)


@given(st.integers(0, 10_000), st.floats(0.01, 0.9))
def test_the_lowest_threshold_is_the_lowest(seed: int, most: float) -> None:
    said, happened, _ = invent_nights(seed)
    column = int(lowest_threshold(counts_of(said, happened), most))

    def false_alarms(threshold: int) -> float:
        return float(((np.rint(said * PATHS) >= threshold) & ~happened).mean())

    assert false_alarms(column) <= most
    assert column == 0 or false_alarms(column - 1) > most


def test_resampled_nights_are_nights_literally_repeated() -> None:
    said, happened, person = invent_nights(4)
    draws = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=25)
    counts = count(said, happened, person, 7)
    got = resampled_auroc(counts, draws), resampled_average_precision(counts, draws)
    for number, times in enumerate(draws):
        again = np.repeat(np.arange(len(said)), times[person])
        expected = (
            roc_auc_score(happened[again], said[again]),
            average_precision_score(happened[again], said[again]),
        )
        assert [of[number] for of in got] == pytest.approx(expected)


@given(st.integers(0, 10_000))
def test_ranks_depend_on_order_alone(seed: int) -> None:
    """Neither on the order of the nights, nor on what is added to every probability."""
    said, happened, person = invent_nights(seed)
    said = np.round(0.7 * said, 3)
    order = np.random.default_rng(seed).permutation(len(said))
    usual = count(said, happened, person, 7).pooled()
    for others in (
        count(said[order], happened[order], person[order], 7).pooled(),
        count(said + 0.25, happened, person, 7).pooled(),
        count(np.round(said**0.5, 6), happened, person, 7).pooled() if said.min() > 0.1 else usual,
    ):
        assert auroc(others) == pytest.approx(auroc(usual))
        assert average_precision(others) == pytest.approx(average_precision(usual))


def test_labels_at_random_have_an_auroc_of_a_half_and_the_base_rate() -> None:
    said, happened, _ = invent_nights(nights=20_000)
    shuffled = np.random.default_rng(3).permutation(happened)
    assert auroc(counts_of(said, shuffled)) == pytest.approx(0.5, abs=0.015)
    assert average_precision(counts_of(said, shuffled)) == pytest.approx(happened.mean(), abs=0.02)
    perfect = counts_of(happened.astype(float), happened)
    assert auroc(perfect) == average_precision(perfect) == 1 > auroc(counts_of(said, happened))
