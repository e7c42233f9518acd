"""Tables recomputed from points and nights, by hand, and in any order."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, wilcoxon

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.compare import (
    MANDATORY,
    Comparison,
    build_leaderboard,
    build_leaderboards,
    compare_pairs,
    night_numbers,
    require_current,
)
from nocturnal_kedro.metrics.scores import MEASURES
from nocturnal_kedro.metrics.significance import bootstrap_means, diebold_mariano_z
from nocturnal_kedro.pipelines.experiments import Experiment, Lane
from nocturnal_kedro.pipelines.reporting import create_pipeline

QUICK = Comparison(resamples=500)
MODELS = ("m", *MANDATORY)
PERSON = ["source", "subject"]
NIGHT = ["split", *PERSON, "origin"]
SCORED = ["reference_mg_dl", *MEASURES]


def invent_points(people: int = 6, models: tuple = MODELS, seed: int = 0) -> pd.DataFrame:
    """The squared error and other measures at each observed point of some people's nights."""
    draw = np.random.default_rng(seed)
    nights = pd.DataFrame(
        [
            ("s" if k % 3 else "r", f"p{k}", pd.Timestamp("2026-01-05") + pd.Timedelta(days=day))
            for k in range(people)
            for day in range(2 + k % 4)
        ],
        columns=[*PERSON, "origin"],
    )
    nights["split"] = np.where(nights["subject"].isin(["p0", "p3"]), "patient", "temporal")
    points = nights.merge(pd.DataFrame({"step": range(1, 97, 5)}), how="cross")
    points = points[draw.random(len(points)) < 0.9].reset_index(drop=True)
    points["band"] = draw.choice(["low", "in range", "high"], len(points))
    return pd.concat(
        points.assign(model=model, **{name: draw.gamma(2, 20 + k, len(points)) for name in SCORED})
        for k, model in enumerate(models)
    )


def cells_of(points: pd.DataFrame, by: tuple[str, ...] = ("step",)) -> pd.DataFrame:
    nights = points.groupby(["split", *PERSON])["origin"].transform("nunique")
    keys = ["model", "split", *PERSON, "nights", *by]
    cells = points.assign(nights=nights).groupby(keys)
    means = cells[SCORED].mean().assign(points=cells.size(), data="d")
    return means.reset_index()


def people_of(errors: dict[str, list[float]], split: str = "temporal") -> pd.DataFrame:
    """Scores with one point per person, whose RMSE is as given."""
    return pd.concat(
        pd.DataFrame({"subject": [f"p{k:02d}" for k in range(len(rmse))]}).assign(
            model=model, source="s", split=split, step=1, nights=1, points=1, data="d",
            **dict.fromkeys(SCORED, 1.0) | {"mse": np.square(rmse)},
        )
        for model, rmse in errors.items()
    )  # fmt: skip


def invent_nights(
    people: int = 7, nights: int = 12, models: int = 4, seed: int = 0, seeds: int = 0
) -> pd.DataFrame:
    """Nightly scores with gaps; people have their own level, models differ a little."""
    draw = np.random.default_rng(seed)
    when = pd.DataFrame(
        [
            ("s", f"p{k}", pd.Timestamp("2026-01-05 00:30") + pd.Timedelta(days=day))
            for k in range(people)
            for day in sorted(draw.choice(nights + 3, nights - (k == 1) * (nights - 3), False))
        ],
        columns=[*PERSON, "origin"],
    )
    when["split"] = "temporal"
    when["points"] = draw.integers(60, 97, len(when))
    level = when["subject"].map({f"p{k}": value for k, value in enumerate(draw.gamma(9, 90, 99))})
    frames = [
        when.assign(
            model=f"m{m}",
            mse=level * (1 + 0.05 * m) * draw.gamma(4, 0.25, len(when)),
            crps_mg_dl=draw.gamma(9, 2, len(when)),
            **({"seed": run} if seeds else {}),
        )
        for m in range(models)
        for run in range(max(seeds, 1))
    ]
    return pd.concat(frames, ignore_index=True).assign(experiment="e", data="d")


def board_of(scores: pd.DataFrame, comparison: Comparison = QUICK) -> pd.DataFrame:
    return build_leaderboard(scores, comparison).set_index(["split", "model"])


@pytest.mark.parametrize(("suffix", "steps"), [("", 96), ("_6h", 72)])
def test_leaderboard_recomputed_from_points(suffix: str, steps: int) -> None:
    points = invent_points()
    board = board_of(cells_of(points))
    for (split, model), rows in points[points["step"] <= steps].groupby(["split", "model"]):
        got = board.loc[(split, model)]
        rmse = np.sqrt(rows.groupby(PERSON)["mse"].mean())
        assert got[f"rmse_mg_dl{suffix}"] == pytest.approx(rmse.mean())
        assert got[f"rmse_pooled_mg_dl{suffix}"] == pytest.approx(np.sqrt(rows["mse"].mean()))
        last = points[(points["model"] == "last_value") & (points["split"] == split)]
        held = np.sqrt(last[last["step"] <= steps].groupby(PERSON)["mse"].mean())
        skill = 1 - rmse.mean() / held.mean()
        assert got[f"skill_vs_last_value{suffix}"] == pytest.approx(skill)
        wins = (rmse < held) + 0.5 * (rmse == held)
        assert got[f"win_rate{suffix}"] == pytest.approx(wins.mean())
        for name in set(MEASURES) - {"mse"}:
            expected = rows.groupby(PERSON)[name].mean().mean()
            assert got[f"{name}{suffix}"] == pytest.approx(expected), name
        zones = rows["clarke_a_pct"] + rows["clarke_b_pct"]
        acceptable = zones.groupby([rows[name] for name in PERSON]).mean().mean()
        assert got[f"clarke_ab_pct{suffix}"] == pytest.approx(acceptable)
        assert got["nights"] == len(points[points["split"] == split].drop_duplicates(NIGHT))
        assert got["subjects"] == len(rmse)
        assert got[f"rmse_low_mg_dl{suffix}"] <= rmse.mean() <= got[f"rmse_high_mg_dl{suffix}"]


@given(st.integers(0, 1000))
@settings(max_examples=5)
def test_cells_may_be_of_any_fineness_and_in_any_order(seed: int) -> None:
    points = invent_points(seed=seed)
    finer = cells_of(points, by=("step", "band")).sample(frac=1, random_state=seed)
    assert len(finer) > 1.5 * len(cells_of(points))
    pd.testing.assert_frame_equal(board_of(finer), board_of(cells_of(points)), rtol=1e-9)


def test_each_source_is_a_test_set_of_its_own_where_asked() -> None:
    scores = cells_of(invent_points(people=9))
    whole = build_leaderboards(scores, QUICK)
    assert set(whole["source"]) == {"all"}
    table = build_leaderboards(scores, QUICK, by_source=True)
    assert list(table["source"].unique()) == ["all", "r", "s"]
    for source in ("r", "s"):
        alone = build_leaderboard(scores[scores["source"] == source], QUICK)
        got = table[table["source"] == source].drop(columns="source").reset_index(drop=True)
        pd.testing.assert_frame_equal(got, alone)
    of_one = scores[scores["source"] == "s"]
    pd.testing.assert_frame_equal(
        build_leaderboards(of_one, QUICK, by_source=True), build_leaderboards(of_one, QUICK)
    )


def test_win_rate_and_ties_by_hand() -> None:
    """Eight people: m is better for seven of them than last value, and equal for one."""
    last = [30.0, 41, 52, 33, 44, 55, 36, 47]
    better = [value - 1 - k for k, value in enumerate(last)]
    board = board_of(
        people_of(
            {"m": [*better[:7], 47.0], "last_value": last, "subject_mean": better,
             "damped_trend": [value - 0.5 for value in better],
             "climatology": [2 * value for value in last]}
        )
    ).loc["temporal"]  # fmt: skip
    assert board["win_rate"].to_dict() == {
        "m": 7.5 / 8, "last_value": 0.5, "subject_mean": 1, "damped_trend": 1, "climatology": 0
    }  # fmt: skip
    # All of eight: 4 * 2 / 2^8 = 0.03 after Holm; seven of seven without the equal: 0.016 alone.
    tied = board["tied_with_best"].to_dict()
    assert board.index[0] == "damped_trend"
    assert tied == {
        "damped_trend": True, "subject_mean": False, "m": False, "last_value": False,
        "climatology": False,
    }  # fmt: skip


@pytest.mark.parametrize(("people", "tied"), [(5, True), (7, True), (8, False)])
def test_how_many_people_it_takes_to_tell_models_apart(people: int, tied: bool) -> None:
    """Even if one is best for everybody: 4 others take 4 * 2 / 2^n < 0.05."""
    best = np.arange(people) + 20.0
    others = {name: best * (2 + k) for k, name in enumerate(MANDATORY)}
    board = board_of(people_of({"m": best, **others})).loc["temporal"]
    assert board.drop("m")["tied_with_best"].eq(tied).all()
    assert board.loc["m", "tied_with_best"]


@pytest.mark.parametrize(
    ("models", "people", "apart"), [(2, 5, False), (2, 6, True), (3, 6, False), (3, 7, True)]
)
def test_two_models_take_six_people_and_three_take_seven(
    models: int, people: int, apart: bool
) -> None:
    nights = invent_nights(people=people, models=1, nights=4)
    each = [nights.assign(model=f"m{k}", mse=nights["mse"] * 4**k) for k in range(models)]
    table = compare_pairs(pd.concat(each), QUICK)
    assert table["apart"].eq(apart).all()
    np.testing.assert_allclose(table["wilcoxon_p"], 2 / 2**people)


@pytest.mark.parametrize(
    ("worse_by", "interval", "ranks"),
    [([1.0] * 24 + [-20], False, True), ([100.0] * 10 + [-1] * 15, True, False)],
)
def test_apart_takes_both_the_interval_and_the_ranks(
    worse_by: list[float], interval: bool, ranks: bool
) -> None:
    best = 200 + np.arange(25.0)
    worse = best + np.array(worse_by) * (1 + np.arange(25) / 1000)
    others = dict.fromkeys(MANDATORY, 3 * best)
    scores = people_of({"best": best, "worse": worse, **others})
    assert board_of(scores).loc[("temporal", "worse"), "tied_with_best"]
    assert not board_of(scores).loc[("temporal", "last_value"), "tied_with_best"]
    nights = scores.assign(origin=pd.Timestamp("2026-01-05"), crps_mg_dl=1.0)
    pairs = compare_pairs(nights, QUICK).set_index(["first", "second"])
    row = pairs.loc[("best", "worse")]
    assert (row["rmse_difference_high_mg_dl"] < 0) == interval
    assert (row["wilcoxon_holm_p"] < 0.05) == ranks
    assert not row["apart"]
    assert pairs.loc[("best", "last_value"), "apart"]


def test_pairs_recomputed_one_by_one() -> None:
    nights = invent_nights()
    comparison = Comparison(resamples=800, seed=3)
    table = compare_pairs(nights, comparison)
    nights["square"] = nights["points"] * nights["mse"]
    sums = nights.groupby(["model", "subject"])[["square", "points"]].sum()
    rmse = np.sqrt(sums["square"] / sums["points"]).unstack("subject")
    models = rmse.mean(axis=1).sort_values().index
    assert list(zip(table["first"], table["second"], strict=True)) == list(combinations(models, 2))
    draws = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=800)
    for row in table.itertuples():
        difference = rmse.loc[row.first] - rmse.loc[row.second]
        assert row.rmse_difference_mg_dl == pytest.approx(difference.mean())
        low, high = np.quantile(draws @ difference.to_numpy() / 7, [0.025, 0.975])
        assert row.rmse_difference_low_mg_dl == pytest.approx(low)
        assert row.rmse_difference_high_mg_dl == pytest.approx(high)
        assert row.win_rate == pytest.approx((difference < 0).mean())
        assert row.wilcoxon_p == pytest.approx(wilcoxon(difference).pvalue)
        z, weights = [], []
        for subject, own in nights.groupby("subject"):
            loss = own.pivot(index="origin", columns="model", values="mse")
            day = (loss.index - loss.index[0]).days.to_numpy(float)
            one = (loss[row.first] - loss[row.second]).to_numpy()
            if subject != "p1":  # three nights
                z += list(diebold_mariano_z(one, np.zeros(len(one)), day))
                weights.append(np.sqrt(len(one)))
        assert row.dm_z == pytest.approx(np.dot(weights, z) / np.linalg.norm(weights))
        assert row.dm_p == pytest.approx(2 * norm.cdf(-abs(row.dm_z)))
        assert (row.people, row.nights, row.dm_left_out) == (7, 75, 1)
    smallest = table["wilcoxon_p"].min()
    assert table["wilcoxon_holm_p"].min() == pytest.approx(min(1, 6 * smallest))
    assert table["dm_holm_p"].min() == pytest.approx(min(1, 6 * table["dm_p"].min()))


@pytest.mark.slow
def test_a_table_of_equal_models_tells_a_pair_apart_one_time_in_twenty() -> None:
    tables = []
    for seed in range(80):
        draw = np.random.default_rng(seed)
        level = draw.normal(100, 20, 20)
        errors = {f"m{k}": level + draw.normal(0, 8, 20) for k in range(5)}
        nights = people_of(errors).assign(origin=pd.Timestamp("2026-01-05"))
        tables.append(compare_pairs(nights, Comparison(resamples=100))["apart"].any())
    assert np.mean(tables) < 0.12


def test_nights_may_be_compared_by_crps() -> None:
    nights = invent_nights()
    by_crps = compare_pairs(nights, Comparison(resamples=100, night_loss="crps_mg_dl"))
    swapped = nights.assign(crps_mg_dl=nights["mse"])
    other = compare_pairs(swapped, Comparison(resamples=100, night_loss="crps_mg_dl"))
    usual = compare_pairs(nights, Comparison(resamples=100))
    pd.testing.assert_frame_equal(other, usual)
    pd.testing.assert_series_equal(by_crps["wilcoxon_p"], usual["wilcoxon_p"])
    assert (by_crps["dm_z"] - usual["dm_z"]).abs().min() > 1e-6


@given(st.integers(0, 2**32 - 1), st.sampled_from([1 / 18.0182, 3.0]))
@settings(max_examples=8)
def test_pairs_know_no_order_and_only_the_difference_has_a_unit(seed: int, unit: float) -> None:
    nights = invent_nights(seed=seed, seeds=2)
    table = compare_pairs(nights, QUICK)
    shuffled = nights.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(compare_pairs(shuffled, QUICK), table)
    scaled = compare_pairs(nights.assign(mse=nights["mse"] * unit**2), QUICK)
    lengths = [name for name in table if name.endswith("mg_dl")]
    scaled[lengths] /= unit
    pd.testing.assert_frame_equal(scaled, table)


@given(st.permutations(["c0", "c1", "c2", "c3"]))
@settings(max_examples=5)
def test_pairs_do_not_depend_on_names_of_models(names: list[str]) -> None:
    nights = invent_nights()
    table = compare_pairs(nights, QUICK)
    new = {f"m{k}": name for k, name in enumerate(names)}
    renamed = compare_pairs(nights.replace({"model": new}), QUICK)
    table[["first", "second"]] = table[["first", "second"]].replace(new)
    pd.testing.assert_frame_equal(renamed, table)


def test_nobody_with_enough_nights_leaves_that_test_out() -> None:
    table = compare_pairs(invent_nights(nights=7), QUICK)
    assert table[["dm_z", "dm_p", "dm_holm_p"]].isna().all().all()
    assert (table["dm_left_out"] == 7).all()
    assert table["wilcoxon_p"].notna().all()
    assert compare_pairs(invent_nights(models=1), QUICK).empty


def test_two_origins_in_one_night_leave_that_test_out_for_everybody() -> None:
    nights = invent_nights()
    first = nights["origin"].min()
    again = nights[nights["origin"] == first]
    assert again["subject"].nunique() < 7
    twice = pd.concat([nights, again.assign(origin=first + pd.Timedelta(hours=11))])
    table, before = compare_pairs(twice, QUICK), compare_pairs(nights, QUICK)
    assert table[["dm_z", "dm_p", "dm_holm_p"]].isna().all().all()
    assert (table["dm_left_out"] == 7).all()
    assert before["dm_z"].notna().all()
    others = table.columns.drop(["dm_z", "dm_p", "dm_holm_p"])
    assert table[others].notna().all().all()
    apart = pd.concat([nights, again.assign(origin=first - pd.Timedelta(hours=13))])
    assert compare_pairs(apart, QUICK)["dm_z"].notna().all()  # of the night before
    # One person's last night may be another's first.
    start, end = nights.groupby("subject")["origin"].agg(["min", "max"]).T.to_numpy()
    late = nights["subject"] == "p1"
    relay = nights["origin"].where(~late, nights["origin"] + (end[0] - start[1]))
    assert compare_pairs(nights.assign(origin=relay), QUICK)["dm_z"].notna().all()


def test_bedtimes_follow_one_another_whatever_the_hour() -> None:
    """A bedtime that moves by up to six hours is one a night; rounded gaps would tell as much."""
    bedtimes = ["01 20:00", "03 01:55", "03 20:00", "05 00:00", "05 23:55", "08 00:10"]
    at = pd.DatetimeIndex([f"2026-03-{time}" for time in bedtimes])
    assert np.diff(night_numbers(at)).tolist() == [1, 1, 1, 1, 2]
    nights = invent_nights()
    moved = nights["origin"] + pd.to_timedelta(nights["origin"].dt.day % 3 - 1, unit="h")
    pd.testing.assert_frame_equal(
        compare_pairs(nights.assign(origin=moved), QUICK), compare_pairs(nights, QUICK)
    )


def test_seeds_are_averaged_for_a_person_and_drawn_for_the_interval() -> None:
    """m has three, the baselines say none; the table of one seed has no column for them."""
    alone = people_of({name: [20.0 + k, 31, 45 - k] for k, name in enumerate(MODELS)})
    runs = [people_of({"m": [20.0 + 6 * k, 31, 45]}).assign(seed=40 + k) for k in range(3)]
    scores = pd.concat([alone[alone["model"] != "m"], *runs])
    board, single = board_of(scores).loc["temporal"], board_of(alone).loc["temporal"]
    row = board.loc["m"]
    assert row["rmse_mg_dl"] == pytest.approx((26 + 31 + 45) / 3)
    assert row["seeds"] == 3
    assert row["rmse_seed_sd_mg_dl"] == pytest.approx(2)  # 96 / 3, 102 / 3, 108 / 3
    squares = [20**2, 26**2, 32**2, *[31**2] * 3, *[45**2] * 3]
    assert row["rmse_pooled_mg_dl"] == pytest.approx(np.sqrt(np.mean(squares)))
    samples = bootstrap_means(np.array([[[20.0, 31, 45], [26, 31, 45], [32, 31, 45]]]), 500, 0)
    assert row["rmse_low_mg_dl"] == pytest.approx(np.quantile(samples, 0.025))
    assert board["seeds"].drop("m").eq(1).all()
    assert board["rmse_seed_sd_mg_dl"].drop("m").isna().all()
    pd.testing.assert_series_equal(board.loc["last_value"].drop(["seeds", "rmse_seed_sd_mg_dl"]),
                                   single.loc["last_value"])  # fmt: skip
    assert "seeds" not in single
    pd.testing.assert_frame_equal(board_of(alone.assign(seed=7)).loc["temporal"], single)
    assert list(board.filter(like="seed")) == ["seeds", "rmse_seed_sd_mg_dl"]


def test_a_seed_scored_on_other_nights_is_refused() -> None:
    nights = invent_nights(seeds=2)
    part = nights[(nights["model"] != "m2") | (nights["seed"] == 0) | (nights["subject"] != "p3")]
    with pytest.raises(InputError, match="m2 was scored on other nights"):
        compare_pairs(part, QUICK)


def test_models_scored_on_other_nights_are_refused() -> None:
    points = invent_points()
    cells = cells_of(points[(points["model"] != "m") | (points["origin"] > "2026-01-05")])
    with pytest.raises(InputError, match="m was scored on other nights"):
        board_of(cells)
    more = cells_of(points[(points["model"] == "m") | (points["origin"] > "2026-01-05")])
    with pytest.raises(InputError, match="m was scored on other nights"):
        board_of(more)


def test_models_fitted_to_other_data_are_refused() -> None:
    cells, nights = cells_of(invent_points()), invent_nights()
    for table, frame, odd in ((build_leaderboard, cells, "m"), (compare_pairs, nights, "m1")):
        data = np.where(frame["model"] == odd, "older", "d")
        with pytest.raises(InputError, match=rf"older: {odd}\), so.*cannot be compared"):
            table(frame.assign(data=data), QUICK)


def test_scores_of_another_version_are_refused() -> None:
    cells = cells_of(invent_points())
    old = cells["model"] == "m"
    for older in (
        cells.drop(columns="outside_0_600_pct"),
        pd.concat([cells[~old], cells[old].drop(columns="clarke_c_pct")]),
    ):
        with pytest.raises(InputError, match=r"made by another version\. Run evaluation again"):
            board_of(older)
    with pytest.raises(InputError, match="lack crps_mg_dl: they were made by another version"):
        compare_pairs(invent_nights().drop(columns="crps_mg_dl"), QUICK)


def test_scores_of_an_older_table_of_origins_are_refused() -> None:
    points = invent_points()
    origins = points[NIGHT].drop_duplicates()
    require_current(cells_of(points, by=("step", "band")), origins)
    with pytest.raises(InputError, match=r"19 test nights of 6 people.*holds 18 of 6.*made anew"):
        require_current(cells_of(points), origins.iloc[1:])


def test_hours_beyond_the_horizon_are_left_out() -> None:
    board = board_of(cells_of(invent_points()), Comparison(also_hours=(2.5, 8.0, 9.0)))
    assert [name for name in board if name.startswith("mae")] == ["mae_mg_dl", "mae_mg_dl_2.5h"]


def test_mandatory_baselines_are_named_where_they_are_missing() -> None:
    cells = cells_of(invent_points(models=("m", "last_value", "damped_trend")))
    with pytest.raises(InputError, match=r"^subject_mean, climatology was not scored.*: damped_tr"):
        board_of(cells)


def test_every_table_of_the_pipeline_has_the_mandatory_baselines() -> None:
    baselines = plugins.names("baseline")
    assert set(MANDATORY) <= set(baselines)
    inputs = create_pipeline(Experiment("e"), (Lane("ttm"),), baselines).inputs()
    assert {f"e.{name}.scores" for name in MANDATORY} <= inputs
