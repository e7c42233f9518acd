"""All experiments in one table: by hand, against the leaderboard, and blind to tests."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.metrics.compare import MANDATORY, Comparison, build_leaderboard
from nocturnal_kedro.metrics.overview import COLUMNS, Overview, build_overview, tell_overview
from nocturnal_kedro.metrics.scores import STANDARD
from nocturnal_kedro.series.schema import TEST_SPLITS

QUICK = Comparison(resamples=400, seed=5)
STANDING = ["rank", "ranked_among", "chosen", "tied_on_validation", "note"]
WORSE = [31.0, 42, 53, 34, 45, 56, 37, 48]
BETTER = [30.0, 40, 50, 30, 40, 50, 30, 40]  # than WORSE, for everybody


def people_of(errors: list[float], split: str = "validation", **marks: object) -> pd.DataFrame:
    """What one seed of a model is saved with: a row a person, with this error in every metric."""
    usual = {
        "experiment": "e", "model": "m", "cell": "", "seed": 0, "data": "d1", "version": "v1",
        "split": split, "source": "s", "nights": 3, "points": 200, "scored_on": 2**40 + 1,
    }  # fmt: skip
    subjects = pd.DataFrame({"subject": [f"p{k:02d}" for k in range(len(errors))]})
    values = {"rmse_mg_dl": errors, "mae_mg_dl": 0.5 * np.array(errors), "crps_mg_dl": errors[::-1]}
    return subjects.assign(**usual | values | marks)[list(COLUMNS)]


def three_splits(errors: list[float], **marks: object) -> pd.DataFrame:
    return pd.concat(people_of(errors, split, **marks) for split in ("validation", *TEST_SPLITS))


def overview_of(*parts: pd.DataFrame, **options: object) -> pd.DataFrame:
    """The rows of all sources, by model."""
    table = build_overview(pd.concat(parts, ignore_index=True), Overview(**options), QUICK)
    return table[table["source"] == "all"].set_index("model")


def test_errors_intervals_and_seeds_by_hand() -> None:
    seeds = [np.array(BETTER), np.array(BETTER) + 4]
    table = overview_of(
        *(people_of(list(errors), seed=k + 1, model="b") for k, errors in enumerate(seeds)),
        people_of([20.0, 25, 33], "patient", seed=1, model="b", nights=2),
        people_of([22.0, 25, 34], "patient", seed=2, model="b", nights=2),
        people_of(WORSE, model="a"),
    )
    assert list(table.index) == ["b", "a"]
    row = table.loc["b"]
    assert row["validation_rmse_mg_dl"] == pytest.approx(310 / 8 + 2)
    assert row["patient_rmse_mg_dl"] == pytest.approx((21 + 25 + 33.5) / 3)
    counts = row[["seeds", "validation_people", "validation_nights", "patient_people",
                  "patient_nights", "temporal_people", "temporal_nights"]]  # fmt: skip
    assert list(counts) == [2, 8, 24, 3, 6, 0, 0]
    assert np.isnan(row["temporal_rmse_mg_dl"])
    assert table.loc["a", "seeds"] == 1
    draws = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=400)
    expected = np.quantile(draws @ np.array(WORSE) / 8, [0.025, 0.975])
    got = table.loc["a", ["validation_low_mg_dl", "validation_high_mg_dl"]].astype(float)
    np.testing.assert_allclose(got, expected)
    # Both seeds' level moves the mean: more than people alone.
    alone = np.quantile(draws @ (np.array(BETTER) + 2) / 8, [0.025, 0.975])
    assert row["validation_low_mg_dl"] < alone[0]
    assert row["validation_high_mg_dl"] > alone[1]


def test_ranks_are_of_validation_and_ties_are_those_of_the_leaderboard() -> None:
    draw = np.random.default_rng(1)
    levels = {"m": 0.0, "near": 0.3, **{name: 3.0 + 4 * k for k, name in enumerate(MANDATORY)}}
    level = draw.normal(60, 15, 14)
    errors = {name: level + more + draw.normal(0, 2, 14) for name, more in levels.items()}
    table = overview_of(*(people_of(list(of), model=name) for name, of in errors.items()))
    scores = pd.concat(
        people_of(list(of), "temporal", model=name).assign(
            step=1, **dict.fromkeys(STANDARD, 1.0) | {"mse": np.square(of)}, reference_mg_dl=1.0
        )
        for name, of in errors.items()
    )
    board = build_leaderboard(scores, QUICK).set_index("model")
    assert 1 < board["tied_with_best"].sum() < len(board)
    assert list(table.index) == list(board.index)
    assert list(table["rank"]) == list(range(1, 7))
    assert table["chosen"].tolist() == [True] + 5 * [False]
    np.testing.assert_array_equal(table["tied_on_validation"], board["tied_with_best"])
    for own, theirs in (("rmse_mg_dl", "rmse_mg_dl"), ("low_mg_dl", "rmse_low_mg_dl"),
                        ("high_mg_dl", "rmse_high_mg_dl")):  # fmt: skip
        np.testing.assert_allclose(table[f"validation_{own}"], board[theirs])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["rmse_mg_dl", "mae_mg_dl", "crps_mg_dl"]))
@settings(max_examples=4)
def test_nothing_in_the_tests_moves_a_standing(seed: int, metric: str) -> None:
    draw = np.random.default_rng(seed)
    saved = pd.concat(
        [three_splits(list(draw.gamma(9, 5, 8)), model=name) for name in "abcd"], ignore_index=True
    )
    tests = saved["split"].isin(TEST_SPLITS)
    other = saved.copy()
    errors = ["rmse_mg_dl", "mae_mg_dl", "crps_mg_dl"]
    other.loc[tests, errors] *= draw.uniform(0.1, 9, (tests.sum(), 3))
    other = other[~tests | (draw.random(len(other)) < 0.8)].sample(frac=1, random_state=seed)
    options = Overview(metric=metric)
    before, after = (build_overview(frame, options, QUICK) for frame in (saved, other))
    same = ["source", "model", *STANDING, f"validation_{metric}"]
    pd.testing.assert_frame_equal(before[same], after[same])
    assert not before[f"patient_{metric}"].equals(after[f"patient_{metric}"])


def test_equals_share_their_rank_and_are_both_chosen() -> None:
    table = overview_of(*(people_of(of, model=m) for m, of in zip("abc", (BETTER, WORSE, BETTER),
                                                                  strict=True)))  # fmt: skip
    assert table["rank"].to_dict() == {"a": 1, "c": 1, "b": 3}
    assert table["chosen"].to_dict() == {"a": True, "c": True, "b": False}
    assert table["tied_on_validation"].to_dict() == {"a": True, "c": True, "b": False}


@pytest.mark.parametrize(("people", "tied"), [(5, True), (6, False)])
def test_with_few_people_nothing_is_told_apart_and_it_says_so(people: int, tied: bool) -> None:
    table = overview_of(
        people_of(BETTER[:people], model="b"), people_of([9 * e for e in BETTER[:people]])
    )
    assert table["tied_on_validation"].to_dict() == {"b": True, "m": tied}
    assert table["note"].str.contains("5 people: too few to tell apart").all() == tied
    told = tell_overview(table.reset_index())
    assert ("too few to tell apart" in told) == tied
    assert "tied with the best" not in told
    assert table["rank"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("worse_by", "others", "tied"),
    [
        ([1.0] * 24 + [-20], 1, True),  # the ranks tell them apart, the interval does not
        ([100.0] * 10 + [-1] * 15, 1, True),  # the interval does, the ranks do not
        ([5.0] * 25, 1, False),
        ([9.0] * 6, 1, False),  # 2 / 2^6 = 0.03
        ([9.0] * 6, 2, True),  # twice that, after Holm
    ],
)
def test_not_tied_takes_the_interval_and_the_ranks_of_all(
    worse_by: list[float], others: int, tied: bool
) -> None:
    best = 200 + np.arange(len(worse_by)) * 1.01
    worse = best + np.array(worse_by) * (1 + np.arange(len(best)) / 1000)
    rows = [people_of(list(worse), model=f"worse{k}") for k in range(others)]
    table = overview_of(people_of(list(best)), *rows)
    assert table["chosen"].to_dict()["m"]
    assert table["tied_on_validation"].drop("m").eq(tied).all()


def test_other_data_other_experiments_and_other_nights_are_ranked_apart() -> None:
    table = overview_of(
        people_of(BETTER, model="a"),
        people_of(WORSE, model="b"),
        people_of(WORSE, model="c", data="d2"),
        people_of(WORSE, model="d", experiment="f"),
        people_of([1.0] * 8, model="e", scored_on=2**40 + 2),
        people_of([1.0] * 8, "temporal", model="f"),
    )
    assert table["rank"].astype(object).where(table["rank"].notna(), None).to_dict() == {
        "a": 1, "b": 2, "c": 1, "d": 1, "e": 1, "f": None
    }  # fmt: skip
    assert table["ranked_among"].to_dict() == {"a": 2, "b": 2, "c": 1, "d": 1, "e": 1, "f": 0}
    assert list(table["experiment"]) == ["e"] * 5 + ["f"]
    assert list(table["data"]) == ["d1"] * 4 + ["d2", "d1"]
    assert list(table.index) == ["a", "e", "b", "f", "c", "d"]
    apart = "ranked apart from rows of other validation nights"
    assert table["note"].to_dict() == {
        "a": apart, "b": apart, "e": apart, "c": "", "d": "",
        "f": "no validation nights: not ranked",
    }  # fmt: skip
    assert not table.loc["f", ["chosen", "tied_on_validation"]].any()


def test_cells_of_a_sweep_and_versions_are_rows_of_their_own() -> None:
    saved = [
        people_of(BETTER, cell="people: 10", version="v2"),
        people_of(WORSE, cell="people: 20", version="v2"),
        people_of(WORSE, cell="people: 40", version="v1"),  # that v2 no longer has
        people_of(WORSE, experiment="f", version="v1", seed=1),
        people_of(BETTER, experiment="f", version="v1", seed=2),
        people_of(BETTER, experiment="f", version="v3", seed=1),
    ]
    table = overview_of(*saved).reset_index()
    rows = table[["experiment", "cell", "version", "rank", "seeds"]].to_numpy().tolist()
    assert rows == [
        ["e", "people: 10", "v2", 1, 1], ["e", "people: 20", "v2", 2, 1], ["f", "", "v3", 1, 1]
    ]  # fmt: skip
    table = overview_of(*saved, versions="all").reset_index()
    assert table["version"].tolist() == ["v1", "v2", "v2", "v3", "v1"]
    assert table["seeds"].tolist() == [1, 1, 1, 1, 2]
    told = tell_overview(table)
    assert "m  people: 40  " in told
    assert "m  v3 " in told


def test_a_sweep_varies_data_and_is_ranked_within_its_version() -> None:
    saved = [
        people_of(WORSE, cell="people: 10", data="d2"),
        people_of(BETTER, cell="people: 20", data="d3"),
        people_of(WORSE, cell="people: 20", data="d3", version="v0"),
        people_of(WORSE, cell="anchors: bedtime", data="d4", scored_on=7),
    ]
    table = overview_of(*saved, versions="all").reset_index()
    rows = table[["cell", "data", "version", "rank", "ranked_among"]].to_numpy().tolist()
    assert rows == [
        ["people: 20", "d3", "v0", 1, 1],
        ["anchors: bedtime", "d4", "v1", 1, 1],
        ["people: 20", "d3", "v1", 1, 2],
        ["people: 10", "d2", "v1", 2, 2],
    ]
    assert [line for line in tell_overview(table).splitlines() if line.startswith("e, ")] == [
        "e, version v0: RMSE in mg/dL, ranked on 24 nights of 8 people",
        "e, version v1: RMSE in mg/dL, ranked on 24 nights of 8 people",
    ]


def test_each_source_is_ranked_by_its_own_people() -> None:
    saved = pd.concat(
        [people_of(BETTER, model="a"), people_of(WORSE, model="b"),
         people_of([90.0] * 9, model="a", source="t"),
         people_of([20.0] * 9, model="b", source="t")],
        ignore_index=True,
    )  # fmt: skip
    table = build_overview(saved, Overview(), QUICK)
    first = table[table["chosen"]].set_index("source")
    assert first["model"].to_dict() == {"all": "b", "s": "a", "t": "b"}
    assert first["validation_people"].to_dict() == {"all": 17, "s": 8, "t": 9}
    of_one = build_overview(saved, Overview(sources="s"), QUICK)
    for source in ("all", "s"):
        got = of_one[of_one["source"] == source].drop(columns="source").reset_index(drop=True)
        own = table[table["source"] == "s"].drop(columns="source").reset_index(drop=True)
        pd.testing.assert_frame_equal(got, own)


def test_what_is_named_is_shown_and_a_wrong_name_is_told() -> None:
    saved = [
        people_of(BETTER, model="ttm", data="ab12"),
        people_of(WORSE, model="chronos2", data="ab34"),
        people_of(WORSE, model="chronos2", data="ab12", version="v0"),
        people_of(WORSE, model="tide", data="cd56", experiment="prandial"),
    ]
    assert set(overview_of(*saved, models="ttm tide").index) == {"ttm", "tide"}
    assert list(overview_of(*saved, data="cd").index) == ["tide"]
    assert list(overview_of(*saved, data="cd ab3").index) == ["chronos2", "tide"]
    assert list(overview_of(*saved, experiments="prandial").index) == ["tide"]
    # The newest of chronos2 is of other data; of the data asked for there is an older one.
    assert overview_of(*saved, data="ab12")["version"].to_dict() == {"ttm": "v1", "chronos2": "v0"}
    for given_, message in (
        ({"models": "tmt"}, r"unknown model in overview\.models 'tmt'.*Did you mean 'ttm'"),
        ({"experiments": "e prandal"}, r"overview\.experiments 'prandal'.*mean 'prandial'"),
        ({"sources": "t"}, r"unknown source in overview\.sources 't'; known: s"),
        ({"data": "b12"}, r"overview\.data 'b12'; known: ab12, ab34, cd56.*'ab12'"),
        ({"models": "ttm", "data": "cd ef"}, r"overview\.data 'ef'"),
        ({"models": "ttm", "data": "cd"}, r"of all of models=ttm, data=cd\. Name fewer"),
    ):
        with pytest.raises(InputError, match=message):
            overview_of(*saved, **given_)
    with pytest.raises(
        InputError, match=r"parameter 'overview': 'model' .*Allowed: experiments, m"
    ):
        validated(Overview, {"model": "ttm"}, "parameter 'overview'")
    with pytest.raises(InputError, match=r"'metric' .*crps_mg_dl"):
        validated(Overview, {"metric": "mape_pct"}, "parameter 'overview'")


@pytest.mark.parametrize(("metric", "best"), [("rmse_mg_dl", "a"), ("crps_mg_dl", "b")])
def test_the_metric_ranks(metric: str, best: str) -> None:
    a = people_of(BETTER, model="a").assign(crps_mg_dl=31.0)
    table = overview_of(a, people_of(WORSE, model="b").assign(crps_mg_dl=21.5), metric=metric)
    assert table["rank"].to_dict()[best] == 1
    assert {name for name in table if name.startswith("validation")} == {
        "validation_people", "validation_nights", f"validation_{metric}",
        "validation_low_mg_dl", "validation_high_mg_dl",
    }  # fmt: skip
    assert f"{metric.split('_')[0].upper()} in mg/dL" in tell_overview(table.reset_index())


def test_seeds_of_other_nights_are_refused() -> None:
    with pytest.raises(InputError, match=r"seeds of m x: 1 \(version v1\).*on different nights"):
        overview_of(
            people_of(BETTER, seed=1, cell="x: 1"), people_of(BETTER[:7], seed=2, cell="x: 1")
        )


def test_what_is_told_is_short_and_says_who_is_tied() -> None:
    many = 2 * BETTER  # eight cannot tell one of thirteen apart: 13 * 2 / 2^8 = 0.1
    near = [e + 0.01 + 0.1 * (-1) ** k for k, e in enumerate(many)]
    table = overview_of(
        three_splits(many, model="a"), people_of(near, model="b"),
        *(people_of([e + 9 + k for e in many], model=f"m{k:02d}") for k in range(12)),
    ).reset_index()  # fmt: skip
    lines = tell_overview(table).splitlines()
    assert lines[0] == "e, data d1: RMSE in mg/dL, ranked on 48 nights of 16 people"
    assert lines[1].split() == ["validation", "95", "%", "interval", *TEST_SPLITS]
    assert lines[2].split()[:2] == ["a", "38.8"]
    assert lines[2].endswith("38.8       38.8  best")
    assert lines[3].endswith("          -          -  tied with the best")
    assert lines[4].endswith("-")
    assert lines[14:] == ["and 2 more", "", "Ranked by validation alone; tests stand beside it to "
                          "be read."]  # fmt: skip
