import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics import scores as metrics_scores
from nocturnal_kedro.metrics.clinical import clarke_zones
from nocturnal_kedro.metrics.compare import (
    Comparison,
    bootstrap_means,
    build_leaderboard,
    require_current,
)
from nocturnal_kedro.metrics.point import (
    absolute_error,
    outside_range,
    percentage_error,
    signed_error,
    squared_error,
)
from nocturnal_kedro.metrics.probabilistic import central_covers, crps, interval_covers, pinball

LEVELS = np.array([0.01, *np.arange(1, 20) / 20, 0.99])


def test_point_errors_by_hand() -> None:
    reference, forecast = np.array([100.0, 80.0]), np.array([120.0, 60.0])
    np.testing.assert_array_equal(signed_error(reference, forecast), [20, -20])
    np.testing.assert_array_equal(squared_error(reference, forecast), [400, 400])
    np.testing.assert_array_equal(absolute_error(reference, forecast), [20, 20])
    np.testing.assert_array_equal(percentage_error(reference, forecast), [20, 25])
    far = np.array([-0.1, 0, 600, 601])
    np.testing.assert_array_equal(outside_range(np.full(4, 100.0), far), [100, 0, 0, 100])


def test_coverage_by_hand_and_of_a_calibrated_interval() -> None:
    reference = np.array([100.0, 120, 90, 110])
    covered = interval_covers(reference, np.full(4, 90.0), np.full(4, 110.0))
    np.testing.assert_array_equal(covered, [100, 0, 100, 100])
    normal = np.random.default_rng(0).normal(140, 30, 40_000)
    lower, upper = 140 - 1.6449 * 30, 140 + 1.6449 * 30
    assert interval_covers(normal, lower, upper).mean() == pytest.approx(90, abs=0.5)


PEOPLE = (("a", "patient", 3), ("b", "temporal", 2), ("c", "temporal", 5))


def frames(seed: int = 0, people: tuple = PEOPLE) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecasts of three people over two splits, some targets unobserved."""
    draw = np.random.default_rng(seed)
    origins = pd.DataFrame(
        [
            ("s", person, pd.Timestamp("2026-01-05") + pd.Timedelta(days=day), split)
            for person, split, nights in people
            for day in range(nights)
        ],
        columns=["source", "subject", "origin", "split"],
    )
    forecasts = origins.drop(columns="split").merge(
        pd.DataFrame({"step": range(1, 97)}), how="cross"
    )
    forecasts["target_mg_dl"] = draw.uniform(50, 300, len(forecasts))
    forecasts.loc[draw.random(len(forecasts)) < 0.1, "target_mg_dl"] = np.nan
    forecasts["forecast_mg_dl"] = draw.uniform(50, 300, len(forecasts))
    offsets = 60 * norm.ppf(LEVELS)
    for level, offset in zip(LEVELS, offsets, strict=True):
        forecasts[f"q{level:g}"] = forecasts["forecast_mg_dl"] + offset
    return forecasts, origins


def score_forecasts(forecasts: pd.DataFrame, origins: pd.DataFrame, *names: str) -> pd.DataFrame:
    return metrics_scores.score_forecasts(forecasts, origins, *names).assign(data="d")


def table(forecasts: pd.DataFrame, origins: pd.DataFrame) -> pd.DataFrame:
    last = forecasts.assign(forecast_mg_dl=150.0)
    scores = [
        score_forecasts(forecasts, origins, "e", "m"),
        score_forecasts(last, origins, "e", "last_value"),
    ]
    return build_leaderboard(pd.concat(scores), Comparison()).set_index(["split", "model"])


@pytest.mark.parametrize(("suffix", "steps"), [("", 96), ("_6h", 72)])
def test_leaderboard_recomputed_from_forecasts(suffix: str, steps: int) -> None:
    forecasts, origins = frames()
    board = table(forecasts, origins)
    judged = forecasts.merge(origins).dropna(subset=["target_mg_dl"])
    judged = judged[judged["step"] <= steps]
    judged["square"] = (judged["forecast_mg_dl"] - judged["target_mg_dl"]) ** 2
    for split, rows in judged.groupby("split"):
        macro = np.sqrt(rows.groupby("subject")["square"].mean()).mean()
        got = board.loc[(split, "m")]
        assert got[f"rmse_mg_dl{suffix}"] == pytest.approx(macro, abs=1e-9)
        assert got[f"rmse_pooled_mg_dl{suffix}"] == pytest.approx(np.sqrt(rows["square"].mean()))
        last = (150.0 - rows["target_mg_dl"]) ** 2
        baseline = np.sqrt(last.groupby(rows["subject"]).mean()).mean()
        assert got[f"skill_vs_last_value{suffix}"] == pytest.approx(1 - macro / baseline)
        zones = clarke_zones(rows["target_mg_dl"], rows["forecast_mg_dl"])
        acceptable = pd.Series(np.isin(zones, ["A", "B"])).groupby(rows["subject"].to_numpy())
        quantiles = rows.filter(regex=r"^q").to_numpy()
        own = pd.Series(crps(rows["target_mg_dl"].to_numpy(), quantiles, LEVELS))
        of_people = own.groupby(rows["subject"].to_numpy()).mean()
        assert got[f"crps_mg_dl{suffix}"] == pytest.approx(of_people.mean())
        assert got[f"crps_low_mg_dl{suffix}"] <= of_people.mean() + 1e-9
        held = (rows["q0.1"] <= rows["target_mg_dl"]) & (rows["target_mg_dl"] <= rows["q0.9"])
        covered = 100 * held.groupby(rows["subject"]).mean().mean()
        assert got[f"coverage_80_pct{suffix}"] == pytest.approx(covered)
        assert got[f"clarke_ab_pct{suffix}"] == pytest.approx(100 * acceptable.mean().mean())
        assert got["nights"] == origins["split"].eq(split).sum()
        assert got["subjects"] == rows["subject"].nunique()


def test_intervals_hold_the_estimate_and_ties_are_of_pairs() -> None:
    many = tuple((f"{split}{k}", split, 2) for k in range(6) for split in ("patient", "temporal"))
    forecasts, origins = frames(people=many)
    board = table(forecasts, origins)
    assert (board["rmse_low_mg_dl"] <= board["rmse_mg_dl"] + 1e-9).all()
    assert (board["rmse_high_mg_dl"] >= board["rmse_mg_dl"] - 1e-9).all()
    assert board.groupby("split").head(1)["tied_with_best"].all()
    perfect = forecasts.assign(forecast_mg_dl=forecasts["target_mg_dl"].fillna(100))
    clear = table(perfect, origins)
    assert not clear.xs("last_value", level="model")["tied_with_best"].any()


def test_fewer_than_six_people_tell_nothing_apart() -> None:
    """Even if one forecast is perfect for each of them: five heads in a row are no surprise."""
    for number, told_apart in ((5, False), (6, True)):
        forecasts, origins = frames(people=tuple((f"p{k}", "patient", 2) for k in range(number)))
        perfect = forecasts.assign(forecast_mg_dl=forecasts["target_mg_dl"].fillna(100))
        row = table(perfect, origins).loc[("patient", "last_value")]
        assert row["tied_with_best"] != told_apart


def test_scores_do_not_depend_on_the_order_of_rows() -> None:
    forecasts, origins = frames()
    shuffled = forecasts.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        score_forecasts(forecasts, origins, "e", "m"), score_forecasts(shuffled, origins, "e", "m")
    )


def test_bootstrap_is_paired_seeded_and_centred() -> None:
    values = np.array([[10.0, 20, 30, 40], [11, 21, 31, 41]])
    samples = bootstrap_means(values, 10_000, seed=1)
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 1.0)
    assert samples[:, 0].mean() == pytest.approx(25, abs=0.3)
    assert samples[:, 0].std() == pytest.approx(np.std([10, 20, 30, 40]) / 2, rel=0.05)
    np.testing.assert_array_equal(samples, bootstrap_means(values, 10_000, seed=1))


def test_models_scored_on_other_nights_are_refused() -> None:
    forecasts, origins = frames()
    part = forecasts[forecasts["origin"] > forecasts["origin"].min()]
    scores = [
        score_forecasts(forecasts, origins, "e", "last_value"),
        score_forecasts(forecasts, origins, "e", "m"),
        score_forecasts(part, origins, "e", "short"),
    ]
    with pytest.raises(InputError, match="short was scored on other nights"):
        build_leaderboard(pd.concat(scores), Comparison())


def test_models_fitted_to_other_data_are_refused() -> None:
    forecasts, origins = frames()
    scores = [
        score_forecasts(forecasts, origins, "e", "last_value"),
        score_forecasts(forecasts, origins, "e", "m").assign(data="older"),
    ]
    with pytest.raises(InputError, match=r"d: last_value; older: m.*cannot be compared"):
        build_leaderboard(pd.concat(scores), Comparison())


def test_scores_of_another_version_are_refused() -> None:
    forecasts, origins = frames()
    scores = score_forecasts(forecasts, origins, "e", "last_value")
    for older in (
        scores.drop(columns="outside_0_600_pct"),
        pd.concat([scores, scores.drop(columns="mae_mg_dl")]),
    ):
        with pytest.raises(InputError, match=r"made by another version\. Run evaluation again"):
            build_leaderboard(older, Comparison())


def test_scores_of_an_older_table_of_origins_are_refused() -> None:
    forecasts, origins = frames()
    scores = score_forecasts(forecasts, origins, "e", "m")
    require_current(scores, origins)
    with pytest.raises(InputError, match=r"10 test nights of 3 people.*holds 9 of 3.*made anew"):
        require_current(scores, origins.iloc[1:])


def test_hours_beyond_the_horizon_are_left_out() -> None:
    forecasts, origins = frames()
    scores = score_forecasts(forecasts, origins, "e", "last_value")
    board = build_leaderboard(scores, Comparison(also_hours=(2.5, 8.0, 9.0)))
    assert [name for name in board if name.startswith("mae")] == ["mae_mg_dl", "mae_mg_dl_2.5h"]


def test_the_reference_is_mandatory() -> None:
    forecasts, origins = frames()
    with pytest.raises(InputError, match="'last_value' was not scored"):
        build_leaderboard(score_forecasts(forecasts, origins, "e", "m"), Comparison())


def test_a_bad_forecast_is_named() -> None:
    forecasts, origins = frames()
    forecasts.loc[5, "forecast_mg_dl"] = np.nan
    with pytest.raises(InputError, match=r"1 forecasts of 'm' are not finite.*subject 'a'.*step 6"):
        score_forecasts(forecasts, origins, "e", "m")


def test_a_bad_quantile_is_named_and_absent_ones_are_refused() -> None:
    forecasts, origins = frames()
    bad = forecasts.assign(**{"q0.3": np.inf})
    with pytest.raises(InputError, match=r"forecasts of 'm' are not finite"):
        score_forecasts(bad, origins, "e", "m")
    with pytest.raises(InputError, match=r"have no quantiles.*another version"):
        score_forecasts(forecasts.drop(columns=list(bad.filter(regex="^q"))), origins, "e", "m")


def test_pinball_and_crps_by_hand() -> None:
    levels = np.array([0.1, 0.5, 0.9])
    quantiles = np.array([[80.0, 90, 120], [100, 110, 130]])
    loss = pinball(np.array([100.0, 90]), quantiles, levels)
    np.testing.assert_allclose(loss, [[2, 5, 2], [9, 10, 4]])
    np.testing.assert_allclose(crps(np.array([100.0, 90]), quantiles, levels), [6, 46 / 3])


def test_crps_of_a_normal_forecast_is_near_its_closed_form() -> None:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)); 21 levels leave a few percent."""
    for reference in (95.0, 140.0, 210.0):
        z = (reference - 140) / 40
        exact = 40 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        got = crps(np.array([reference]), (140 + 40 * norm.ppf(LEVELS))[None], LEVELS)
        assert got[0] == pytest.approx(exact, rel=0.06)


def test_a_central_interval_takes_its_own_ends_or_none() -> None:
    quantiles = np.arange(21.0)[None]
    assert central_covers(np.array([2.0]), quantiles, LEVELS, 0.8)[0] == 100
    assert central_covers(np.array([1.0]), quantiles, LEVELS, 0.8)[0] == 0
    with pytest.raises(ValueError, match="central 95% has no quantiles"):
        central_covers(np.array([1.0]), quantiles, LEVELS, 0.95)


def test_an_unknown_origin_is_named() -> None:
    forecasts, origins = frames()
    with pytest.raises(InputError, match="not in the frozen table: subject 'a'"):
        score_forecasts(forecasts, origins[origins["subject"] != "a"], "e", "m")
