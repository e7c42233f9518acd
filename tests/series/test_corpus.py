"""What is laid end to end: coverage that follows the sensor, insulin that is known or is not."""

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.series.corpus import CHANNELS, build_corpus, coverage
from nocturnal_kedro.series.physiology import Physiology
from nocturnal_kedro.series.schema import Readings, make_tally
from tests.conftest import grid, invent_readings

DAY = 288


def fifteen(days: int) -> np.ndarray:
    return np.arange(days * DAY) % 3 == 0


@pytest.mark.parametrize("share", [0.9, 0.8, 0.7, 0.6, 0.5, 0.45])
def test_lost_readings_of_a_5_minute_sensor_are_missed(share: float) -> None:
    observed = np.random.default_rng(0).random(20 * DAY) < share
    covered, steps = coverage(observed)
    assert steps == 1
    assert covered[DAY:].mean() == pytest.approx(share, abs=0.06)


def test_a_15_minute_sensor_covers_what_lies_between_its_readings() -> None:
    covered, steps = coverage(fifteen(5))
    assert steps == 3
    assert covered[DAY:].all()
    drifting = np.zeros(5 * DAY, bool)
    drifting[np.cumsum(np.tile([3] * 15 + [4], 40))[:470]] = True
    assert coverage(drifting)[0][DAY : 4 * DAY].mean() > 0.95


def test_scans_between_its_readings_add_nothing() -> None:
    observed = fifteen(5)
    observed[DAY * 2 : DAY * 2 + 70] = False  # six hours without a reading
    scanned = observed | (np.random.default_rng(1).random(5 * DAY) < 0.08)
    scanned[DAY * 2 : DAY * 2 + 70] = False
    plain, _ = coverage(observed)
    with_scans, steps = coverage(scanned)
    assert steps == 3
    assert abs(int(plain[DAY:].sum()) - int(with_scans[DAY:].sum())) <= 3


def test_a_change_of_sensor_is_followed_within_a_day() -> None:
    observed = np.concatenate([np.ones(10 * DAY, bool), fifteen(10)])
    covered, _ = coverage(observed)
    assert covered[: 10 * DAY].all()
    assert covered[11 * DAY :].all()


def test_coverage_looks_back_alone() -> None:
    observed = np.random.default_rng(2).random(10 * DAY) < 0.5
    changed = observed.copy()
    changed[6 * DAY :] = fifteen(4)
    np.testing.assert_array_equal(coverage(observed)[0][: 6 * DAY], coverage(changed)[0][: 6 * DAY])


def test_insulin_on_board_is_unknown_while_a_bolus_acts_that_no_basal_stands_beside() -> None:
    frame = invent_readings(people=1, days=3).frame
    frame["bolus_u"] = np.nan
    gap = slice(DAY + 100, DAY + 102)  # ten minutes without a basal record
    frame.loc[gap.start : gap.stop - 1, ["basal_u_h", "basal_minutes"]] = np.nan
    silent = build_corpus(grid(Readings(frame, make_tally("read", []))), Physiology())
    frame.loc[gap.start + 1, "bolus_u"] = 6.0
    dosed = build_corpus(grid(Readings(frame, make_tally("read", []))), Physiology())
    iob, activity = CHANNELS.index("iob_u"), CHANNELS.index("insulin_activity_u_h")
    after = slice(gap.stop + 1, gap.stop + 60)
    assert silent.observed_TC[after, iob].all()
    assert not dosed.observed_TC[after, [iob]].any()
    assert not dosed.observed_TC[after, [activity]].any()
    assert dosed.observed_TC[gap.stop + 80, iob]  # six hours later nothing of it acts


def test_flagged_insulin_counts_as_unobserved() -> None:
    series = grid(invent_readings(people=1, days=2)).assign(insulin_flagged=True)
    corpus = build_corpus(series, Physiology())
    assert not corpus.observed_TC[:, CHANNELS.index("insulin_u")].any()
    assert not corpus.observed_TC[:, CHANNELS.index("iob_u")].any()
    assert corpus.observed_TC[:, CHANNELS.index("cob_g")].any()


def test_steps_and_heart_rate_are_channels_with_their_own_mask() -> None:
    frame = invent_readings(people=1, days=2).frame
    frame["steps"] = pd.Series(np.where(np.arange(len(frame)) % 3 == 0, 40.0, np.nan))
    corpus = build_corpus(grid(Readings(frame, make_tally("read", []))), Physiology())
    steps, heart = CHANNELS.index("steps"), CHANNELS.index("heart_rate")
    assert corpus.observed_TC[:, steps].mean() == pytest.approx(1 / 3, abs=0.01)
    assert not corpus.observed_TC[:, heart].any()
