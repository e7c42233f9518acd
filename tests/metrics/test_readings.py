"""Single low readings: counted by what was said of each, and told from the others."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from nocturnal_kedro.metrics.alarms import rank_readings
from nocturnal_kedro.metrics.calibration import SCORES_Q, probability
from nocturnal_kedro.metrics.compare import Comparison
from nocturnal_kedro.metrics.events import LOWS, Counts, from_table, tabulate
from nocturnal_kedro.metrics.forecasts import Forecasts
from nocturnal_kedro.metrics.scores import count_low_readings


def invent(seed: int, error: float) -> Forecasts:
    draw = np.random.default_rng(seed)
    target_NH = draw.normal(85, 18, (40, 12))
    point_NH = target_NH + draw.normal(0, error, target_NH.shape)
    target_NH[draw.random(target_NH.shape) < 0.1] = np.nan
    nights = pd.DataFrame(
        {
            "source": "s",
            "subject": [f"p{k // 5}" for k in range(40)],
            "origin": pd.date_range("2026-01-05", periods=40),
            "split": ["patient"] * 35 + ["validation"] * 5,
        }
    )
    return Forecasts(nights, target_NH, point_NH, point_NH[..., None] + 15 * SCORES_Q, None)


def test_readings_are_ranked_as_the_readings_themselves_say() -> None:
    good, poor = invent(0, 10.0), invent(0, 40.0)
    counted = [
        count_low_readings(forecasts).assign(model=name, data="d")
        for name, forecasts in (("good", good), ("poor", poor))
    ]
    table = rank_readings(pd.concat(counted), Comparison(resamples=200))
    assert list(table["model"]) == ["good", "poor"] * 2  # best first, of each kind of low
    assert set(table["split"]) == {"patient"}  # never of validation
    for low, threshold in LOWS.items():
        for name, forecasts in (("good", good), ("poor", poor)):
            tested = forecasts.target_NH[:35]
            seen = ~np.isnan(tested)
            said = np.rint(1000 * probability(forecasts.quantiles_NHQ[:35], threshold)[seen])
            happened = tested[seen] < threshold
            row = table[(table["low"] == low) & (table["model"] == name)].iloc[0]
            assert row["auroc"] == pytest.approx(roc_auc_score(happened, said))
            assert row["average_precision"] == pytest.approx(
                average_precision_score(happened, said)
            )
            assert row["base_rate_pct"] == pytest.approx(100 * happened.mean())
            assert (row["readings"], row["lows"], row["people"]) == (seen.sum(), happened.sum(), 7)
            assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    tied = table.set_index(["low", "model"])["tied_with_best"]
    assert tied["low", "good"]
    assert not tied["low", "poor"]


def test_a_table_of_counts_is_the_counts() -> None:
    draw = np.random.default_rng(1)
    counts = Counts(*(draw.poisson(0.01, (2, 6, 1001)).astype(float)))
    for kept, given in zip(from_table(tabulate(counts), 6), counts, strict=True):
        np.testing.assert_array_equal(kept, given)
