"""Tables of sweeps against the leaderboard and the pairs, by hand, and on the nights in common."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.figures import sweeps as figures
from nocturnal_kedro.metrics.alarms import rank_alarms
from nocturnal_kedro.metrics.compare import (
    MANDATORY,
    Comparison,
    build_leaderboard,
    compare_pairs,
)
from nocturnal_kedro.metrics.forecasts import NIGHT, PERSON
from nocturnal_kedro.metrics.scores import STANDARD
from nocturnal_kedro.metrics.significance import holm
from nocturnal_kedro.metrics.sweeps import AVERAGED, BASELINES, OWN_GROUP, by_person, summarise
from nocturnal_kedro.series.schema import TEST_SPLITS

QUICK = Comparison(resamples=300, seed=3)
ROW = ["split", "group", "question", "cell", "model"]
NO_GROUPS = pd.DataFrame(columns=["group", *NIGHT])
# Question, cell, number, against, seeds.
CELLS = (
    ("context", "context 96", 96.0, "context 288", (0, 1, 2)),
    ("context", "context 288", 288.0, "", (0, 1, 2)),
    ("insulin", "without insulin", np.nan, "context 288", (0, 1, 2)),
    *((BASELINES, name, np.nan, "", (np.nan,)) for name in MANDATORY),
)


def invent_nights(people: int = 16, seed: int = 0) -> pd.DataFrame:
    """Nights of people of two sources, half of them never seen; each has own nights and points."""
    draw = np.random.default_rng(seed)
    nights = pd.DataFrame(
        [
            ("patient" if k % 2 else "temporal", "r" if k % 3 else "s", f"p{k:02d}",
             pd.Timestamp("2026-01-05") + pd.Timedelta(days=day))
            for k in range(people)
            for day in range(2 + k % 4)
        ],
        columns=["split", *NIGHT],
    )  # fmt: skip
    nights["points"] = draw.integers(60, 97, len(nights))
    return nights.assign(reference_mg_dl=draw.uniform(90, 200, len(nights)))


def invent_scores(cells: tuple = CELLS, people: int = 16, seed: int = 0) -> pd.DataFrame:
    nights = invent_nights(people, seed)
    draw = np.random.default_rng(seed + 1)
    frames = [
        nights.assign(
            question=question, cell=cell, number=number, against=against, seed=run,
            model=cell if question == BASELINES else "ttm",
            **{name: draw.gamma(4, 5 + place, len(nights)) for name in STANDARD},
        )
        for place, (question, cell, number, against, seeds) in enumerate(cells)
        for run in seeds
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def group_of(name: str, nights: pd.DataFrame) -> pd.DataFrame:
    return nights[NIGHT].drop_duplicates().assign(group=name)


def rows_of(scores: pd.DataFrame, groups: pd.DataFrame = NO_GROUPS) -> pd.DataFrame:
    """The table by split, group, question, cell and model."""
    return summarise(scores, groups, QUICK).set_index(ROW)


def question_of(table: pd.DataFrame, split: str, question: str) -> pd.DataFrame:
    """The rows of a question over all nights of a split, by cell and model."""
    return table.xs((split, "all", question), level=["split", "group", "question"])


def people_of(errors: dict[str, list[float]], against: dict[str, str]) -> pd.DataFrame:
    """Cells of one question and last value: one night and point a person, the RMSE as given."""
    errors = errors | {"last_value": [99.0 + k for k in range(len(max(errors.values(), key=len)))]}
    frames = [
        pd.DataFrame({"subject": [f"p{k:02d}" for k in range(len(rmse))]}).assign(
            cell=cell, question=BASELINES if cell == "last_value" else "q", number=np.nan,
            model=cell if cell == "last_value" else "m", against=against.get(cell, ""), seed=0,
            split="patient", source="s", origin=pd.Timestamp("2026-01-05"), points=1,
            reference_mg_dl=120.0, **dict.fromkeys(AVERAGED, 1.0) | {"mse": np.square(rmse)},
        )
        for cell, rmse in errors.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def test_differences_are_those_of_the_pairs() -> None:
    scores = invent_scores()
    table = rows_of(scores)
    for question, cell in (("context", "context 96"), ("insulin", "without insulin")):
        both = scores[scores["cell"].isin([cell, "context 288"])]
        pairs = compare_pairs(both.assign(model=both["cell"], data="d"), QUICK)
        for pair in pairs.itertuples():
            got = table.loc[(pair.split, "all", question, cell, "ttm")]
            sign = 1 if pair.first == cell else -1
            assert got["difference_mg_dl"] == pytest.approx(sign * pair.rmse_difference_mg_dl)
            ends = sorted(
                sign * end
                for end in (pair.rmse_difference_low_mg_dl, pair.rmse_difference_high_mg_dl)
            )
            np.testing.assert_allclose(got[["difference_low_mg_dl", "difference_high_mg_dl"]]
                                       .astype(float), ends)  # fmt: skip
            assert got["win_rate"] == pytest.approx(pair.win_rate if sign == 1 else
                                                    1 - pair.win_rate)  # fmt: skip
            assert got["wilcoxon_p"] == got["wilcoxon_holm_p"] == pytest.approx(pair.wilcoxon_p)
            assert (got["paired_people"], got["paired_nights"]) == (pair.people, pair.nights)
            assert got["apart"] == pair.apart
    assert table["apart"].nunique() == 2  # some are, some are not


def test_rows_are_those_of_the_leaderboard() -> None:
    scores = invent_scores()
    nights = scores.groupby([*PERSON, "split", "cell", "seed"], dropna=False)["origin"]
    cells = scores.assign(model=scores["cell"], nights=nights.transform("size"), step=1, data="d")
    board = build_leaderboard(cells, QUICK).set_index(["split", "model"])
    table = rows_of(scores).reset_index().set_index(["split", "cell"]).sort_index()
    board = board.sort_index()
    alike = ["nights", "rmse_mg_dl", "rmse_low_mg_dl", "rmse_high_mg_dl", "mae_mg_dl",
             "bias_mg_dl", "crps_mg_dl", "crps_low_mg_dl", "crps_high_mg_dl", "coverage_80_pct",
             "skill_vs_last_value", "skill_low", "skill_high"]  # fmt: skip
    np.testing.assert_allclose(table[alike], board[alike], rtol=1e-9)
    np.testing.assert_array_equal(table[["people", "seeds"]], board[["subjects", "seeds"]])


def test_a_table_by_hand() -> None:
    """Two people, one with nights of 60 and 20 points; seeds count alike, and people."""
    keys = [("s", "a", "2026-01-05", 60), ("s", "a", "2026-01-06", 20), ("t", "a", "2026-01-05", 9)]
    nights = pd.DataFrame(keys, columns=[*NIGHT, "points"])
    nights = nights.assign(split="temporal", reference_mg_dl=[110.0, 160, 140])

    def cell(question: str, name: str, seed: float, mse: list[float], crps: list[float]):
        return nights.assign(
            question=question, cell=name, model="m" if question == "q" else name, number=7.0,
            against="few" if name == "many" else "", seed=seed, mse=mse, crps_mg_dl=crps,
            mae_mg_dl=[4.0, 8, 6], bias_mg_dl=[-3.0, 5, 2], coverage_80_pct=[70.0, 90, 85],
        )  # fmt: skip

    scores = pd.concat([
        cell("q", "few", 5, [400.0, 1600, 2500], [10.0, 30, 25]),
        cell("q", "many", 5, [300.0, 700, 3600], [9.0, 13, 28]),
        cell("q", "many", 6, [1.0, 2, 3], [1.0, 2, 3]),  # a seed that the other has not
        cell(BASELINES, "last_value", np.nan, [1600.0, 1600, 8100], [30.0, 30, 50]),
    ])  # fmt: skip
    table = question_of(rows_of(scores), "temporal", "q")
    few, many = table.loc[("few", "m")], table.loc[("many", "m")]
    # (60 * 400 + 20 * 1600) / 80 = 700 and (60 * 300 + 20 * 700) / 80 = 400
    assert few["rmse_mg_dl"] == pytest.approx((np.sqrt(700) + 50) / 2)
    assert few["mae_mg_dl"] == pytest.approx((5 + 6) / 2)
    assert few["bias_mg_dl"] == pytest.approx((-1 + 2) / 2)
    assert few["coverage_80_pct"] == pytest.approx((75 + 85) / 2)
    assert few["crps_mg_dl"] == pytest.approx((15 + 25) / 2)
    assert few["skill_vs_last_value"] == pytest.approx(1 - (np.sqrt(700) + 50) / (40 + 90))
    second = (np.sqrt((60 * 1 + 20 * 2) / 80) + np.sqrt(3)) / 2
    assert many["rmse_mg_dl"] == pytest.approx(((20 + 60) / 2 + second) / 2)
    assert many["difference_mg_dl"] == pytest.approx((20 - np.sqrt(700) + 60 - 50) / 2)
    assert many["crps_difference_mg_dl"] == pytest.approx((10 - 15 + 28 - 25) / 2)
    assert many["win_rate"] == 0.5
    assert many["wilcoxon_p"] == 1
    counts = ["people", "nights", "seeds", "paired_people", "paired_nights", "paired_seeds"]
    assert list(many[counts]) == [2, 3, 2, 2, 3, 1]
    assert list(few[counts]) == [2, 3, 1, 0, 0, 0]
    assert (few["against"], many["against"], many["number"]) == ("", "few", 7)
    people = by_person(scores)
    one = people.set_index(["source", "cell", "seed"]).loc[("s", "many", 5)]
    assert (one["nights"], one["crps_mg_dl"], one["rmse_mg_dl"]) == (2, 10, 20)


@pytest.mark.parametrize("cell", ["context 96", "context 288"])
def test_cells_are_paired_on_the_nights_that_both_have(cell: str) -> None:
    """Either lacks a person and some nights, as after 30 days of adaptation; the rest stands."""
    scores = invent_scores()
    lost = (scores["subject"] == "p03") | (scores["origin"] > "2026-01-07")
    partial = scores[~(lost & (scores["cell"] == cell))]
    table, whole, common = rows_of(partial), rows_of(scores), rows_of(scores[~lost])
    index = ("patient", "all", "context", "context 96", "ttm")
    got, alone = table.loc[index], common.loc[index]
    paired = ["paired_people", "paired_nights", "win_rate", "wilcoxon_p",
              "difference_mg_dl", "difference_low_mg_dl", "difference_high_mg_dl",
              "crps_difference_low_mg_dl", "crps_difference_high_mg_dl"]  # fmt: skip
    np.testing.assert_allclose(got[paired].astype(float), alone[paired].astype(float))
    own = ("patient", "all", "context", cell, "ttm")
    skill = ["skill_vs_last_value", "skill_low", "skill_high"]
    np.testing.assert_allclose(table.loc[own, skill].astype(float),
                               common.loc[own, skill].astype(float))  # fmt: skip
    assert got["paired_people"] == whole.loc[index, "people"] - 1
    changed = ["context 96", *(["context 288", "without insulin"] if cell == "context 288" else [])]
    pd.testing.assert_frame_equal(
        table.drop(changed, level="cell"), whole.drop(changed, level="cell")
    )
    reference = ("patient", "all", "context", "context 288", "ttm")
    assert got["difference_mg_dl"] != pytest.approx(
        got["rmse_mg_dl"] - table.loc[reference, "rmse_mg_dl"]
    )


def test_nothing_in_common_is_told_as_that() -> None:
    scores = invent_scores()
    swapped = (scores["cell"] == "context 96") == (scores["source"] == "r")
    of_one = scores[swapped | ~scores["cell"].isin(["context 96", "context 288"])]
    got = rows_of(of_one).xs("context 96", level="cell")
    assert got[["difference_mg_dl", "difference_low_mg_dl", "win_rate"]].isna().all().all()
    assert (got[["paired_people", "paired_nights"]] == 0).all().all()
    assert not got["apart"].any()
    other_seeds = scores.assign(seed=scores["seed"] + 10 * (scores["cell"] == "context 96"))
    got = rows_of(other_seeds).xs("context 96", level="cell")
    assert got["difference_mg_dl"].isna().all()
    assert (got[["paired_people", "paired_seeds"]] == 0).all().all()
    assert got["seeds"].eq(3).all()


def test_only_seeds_that_both_have_are_compared_but_all_with_a_baseline() -> None:
    scores = invent_scores()
    fewer = scores[(scores["cell"] != "context 288") | (scores["seed"] > 0)]
    both = scores[scores["seed"].isna() | (scores["seed"] > 0)]
    columns = ["difference_mg_dl", "difference_low_mg_dl", "crps_difference_high_mg_dl"]
    got, expected = (rows_of(some).xs("context 96", level="cell") for some in (fewer, both))
    np.testing.assert_allclose(got[columns], expected[columns])
    assert (got["paired_seeds"] == 2).all()
    assert (got["seeds"] == 3).all()
    against = scores.assign(against=scores["against"].replace("context 288", "last_value"))
    for with_seed in (against, against.fillna({"seed": 0})):
        table = rows_of(with_seed)
        got = table.xs("context 96", level="cell").reset_index()
        last = table.xs("last_value", level="cell")["rmse_mg_dl"].to_numpy()
        np.testing.assert_allclose(got["difference_mg_dl"], got["rmse_mg_dl"] - last)
        assert (got["paired_seeds"] == 3).all()


def test_a_group_is_the_table_of_its_nights_and_may_overlap_others() -> None:
    scores = invent_scores()
    early, of_r = scores["origin"] < "2026-01-07", scores["source"] == "r"
    groups = pd.concat([group_of("early", scores[early]), group_of("r", scores[of_r])])
    table = rows_of(scores, groups)
    assert list(table.index.unique("group")) == ["all", "early", "r"]
    for name, within in (("early", early), ("r", of_r)):
        alone = rows_of(scores[within]).rename(index={"all": name}, level="group")
        pd.testing.assert_frame_equal(table.xs(name, level="group", drop_level=False), alone)
    elsewhere = group_of("later", scores).assign(origin=pd.Timestamp("2027-01-01"))
    pd.testing.assert_frame_equal(rows_of(scores, elsewhere), rows_of(scores))


def test_a_cell_may_be_compared_with_the_one_named_like_the_group() -> None:
    """Trained on both or on one of two sources, tested on each: what its own source gives."""
    cells = (
        *(("sources", name, np.nan, OWN_GROUP, (0, 1)) for name in ("r", "s", "r + s")),
        (BASELINES, "last_value", np.nan, "", (np.nan,)),
    )
    scores = invent_scores(cells)
    groups = pd.concat([group_of(name, scores[scores["source"] == name]) for name in "rs"])
    table = rows_of(scores, groups).xs("ttm", level="model").loc["temporal"]
    assert table["against"].to_dict() == {
        ("all", "sources", "r"): "", ("all", "sources", "s"): "", ("all", "sources", "r + s"): "",
        ("r", "sources", "r"): "", ("r", "sources", "s"): "r", ("r", "sources", "r + s"): "r",
        ("s", "sources", "r"): "s", ("s", "sources", "s"): "", ("s", "sources", "r + s"): "s",
    }  # fmt: skip
    for own in "rs":
        of_group = table.loc[own, "sources"]
        np.testing.assert_allclose(
            of_group.loc["r + s", "difference_mg_dl"],
            of_group.loc["r + s", "rmse_mg_dl"] - of_group.loc[own, "rmse_mg_dl"],
        )


def test_a_cell_of_several_questions_is_compared_within_its_own() -> None:
    """Where a name is there twice, that of the same question counts, and of the same model."""
    cells = (
        ("context", "usual", np.nan, "", (0,)),
        ("people", "half", np.nan, "usual", (0,)),
        ("people", "usual", np.nan, "", (0,)),
        (BASELINES, "last_value", np.nan, "", (np.nan,)),
    )
    scores = invent_scores(cells)
    other = scores[scores["question"] == "people"].assign(model="chronos2")
    other = other.assign(mse=2 * other["mse"])
    table = question_of(rows_of(pd.concat([scores, other])), "patient", "people")
    for model in ("ttm", "chronos2"):
        half, usual = (table.loc[(cell, model)] for cell in ("half", "usual"))
        expected = half["rmse_mg_dl"] - usual["rmse_mg_dl"]
        assert half["difference_mg_dl"] == pytest.approx(expected)


@pytest.mark.parametrize(("people", "apart"), [(5, False), (6, True)])
def test_it_takes_six_people_to_tell_one_cell_apart(people: int, apart: bool) -> None:
    few = [20.0 + k for k in range(people)]
    scores = people_of({"few": few, "more": [3 * rmse for rmse in few]}, {"more": "few"})
    row = rows_of(scores).loc["patient", "all", "q", "more", "m"]
    assert row["difference_low_mg_dl"] > 0
    assert row["wilcoxon_p"] == pytest.approx(2 / 2**people)
    assert row["apart"] == apart


def test_comparisons_of_a_question_are_one_family() -> None:
    """Seven people: 2 / 2^7 = 0.016 for one comparison, 0.047 for three, 0.06 for four."""
    few = [20.0 + k for k in range(7)]
    cells = {"few": few} | {f"c{k}": [k * rmse for rmse in few] for k in (2, 3, 4)}
    scores = people_of(cells, {f"c{k}": "few" for k in (2, 3, 4)})
    other = scores[scores["cell"].isin(["few", "c2"])].assign(question="other")
    table = rows_of(pd.concat([scores, other]))
    assert table.xs("q", level="question")["apart"].sum() == 3
    np.testing.assert_allclose(
        table.loc[("patient", "all", "other", "c2", "m"), "wilcoxon_holm_p"], 2 / 2**7
    )
    mixed = [20.5, 20.7, 22.6, 22.8, 24.9, 24.6, 26.3]
    fourth = people_of({"few": few, "c5": mixed}, {"c5": "few"}).query("cell == 'c5'")
    table = question_of(rows_of(pd.concat([scores, fourth])), "patient", "q")
    compared = table[table["against"] != ""]
    np.testing.assert_allclose(compared["wilcoxon_holm_p"], holm(compared["wilcoxon_p"].to_numpy()))
    assert not compared["apart"].any()


def test_rows_come_in_order_of_appearance_and_validation_does_not_count() -> None:
    scores = invent_scores()
    table = rows_of(scores)
    expected = [(question, cell) for question, cell, *_ in CELLS]
    for split in TEST_SPLITS:
        assert list(table.loc[split, "all"].index.droplevel("model")) == expected
    validation = scores[scores["split"] == "patient"].assign(split="validation", mse=1e9)
    both = pd.concat([validation[::-1], scores])
    pd.testing.assert_frame_equal(rows_of(both), table)
    assert set(by_person(both)["split"]) == set(TEST_SPLITS)
    only_patient = rows_of(
        scores[(scores["split"] == "patient") | (scores["cell"] != "context 96")]
    )
    assert "context 96" not in only_patient.loc["temporal"].index.unique("cell")


@given(st.integers(0, 2**32 - 1), st.sampled_from([1 / 18.0182, 3.0]))
@settings(max_examples=4)
def test_nights_know_no_order_and_only_errors_have_a_unit(seed: int, unit: float) -> None:
    scores = invent_scores(seed=seed % 1000, people=9)
    table = rows_of(scores)
    shuffled = scores.sample(frac=1, random_state=seed).sort_values("cell", kind="stable")
    pd.testing.assert_frame_equal(rows_of(shuffled).sort_index(), table.sort_index())
    lengths = ["mae_mg_dl", "bias_mg_dl", "crps_mg_dl", "reference_mg_dl"]
    scaled = scores.assign(mse=scores["mse"] * unit**2, **(scores[lengths] * unit))
    other = rows_of(scaled)
    lengths = [name for name in table if name.endswith("mg_dl")]
    other[lengths] /= unit
    pd.testing.assert_frame_equal(other, table)


def test_people_one_by_one() -> None:
    scores = invent_scores()
    people = by_person(scores)
    assert list(people["cell"].unique()) == [cell for _, cell, *_ in CELLS]
    key = ["split", *PERSON, "question", "cell", "number", "model", "seed"]
    assert not people.duplicated(key).any()
    for row in people.sample(12, random_state=0).itertuples():
        seeds = scores["seed"].isna() if np.isnan(row.seed) else scores["seed"] == row.seed
        own = scores[seeds & (scores["cell"] == row.cell) & (scores["subject"] == row.subject)]
        assert row.nights == len(own)
        assert row.rmse_mg_dl == pytest.approx(
            np.sqrt(np.average(own["mse"], weights=own["points"]))
        )
        assert row.crps_mg_dl == pytest.approx(np.average(own["crps_mg_dl"], weights=own["points"]))
        numbers = {cell: number for _, cell, number, *_ in CELLS}
        np.testing.assert_equal(row.number, numbers[row.cell])


def test_figures_are_drawn_from_these_tables() -> None:
    scores = invent_scores()
    table, people = summarise(scores, group_of("some", scores.head(30)), QUICK), by_person(scores)
    figure = figures.effects(table)
    drawn = table[(table["group"] == "all") & (table["against"] != "")]
    np.testing.assert_allclose(np.concatenate([trace.x for trace in figure.data]),
                               drawn["difference_mg_dl"])  # fmt: skip
    curve = figures.curve(table, "context", "some")
    assert {trace.name for trace in curve.data} == {"ttm", *MANDATORY}
    for measure in figures.MEASURES:
        assert figures.matrix(table, ["all", "some"], measure).data
    assert len(figures.learning_curves(people, "context").data) == 2 * len(TEST_SPLITS)


def changed(scores: pd.DataFrame, cell: str, **values: object) -> pd.DataFrame:
    """Scores where the first night of a cell says something else."""
    scores = scores.copy()
    scores.loc[scores.index[scores["cell"] == cell][0], list(values)] = list(values.values())
    return scores


SCORES = invent_scores()
MANY = SCORES[SCORES["cell"] == "context 96"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES[SCORES["cell"] != "last_value"],
         "the sweep has no last_value, .*; baselines: subject_mean, damped_trend, climatology. Sc"),
        (SCORES.replace({"against": {"context 288": "contxt 288"}}),
         "unknown cell (with which 'context 96' of 'context' is compared) 'contxt 288'; known: "
         ".*Did you mean 'context 288'?"),
        (SCORES.assign(against=OWN_GROUP),
         "named like the group of nights, and none is; groups: all, late; cells: context 96, con"),
        (pd.concat([SCORES, MANY.assign(model="chronos2")]),
         "'context 96' of 'context' is compared with 'context 288', which was not scored with "
         "model 'chronos2', only with ttm. Run the sweep"),
        (changed(SCORES, "context 288", points=17),
         "'context 288' of 'context' was scored by other readings than 'context 96' of "
         "'context': points of the night of subject 'p00', 2026-01-05 00:00:00, is 17, not "),
        (changed(SCORES, "climatology", reference_mg_dl=111.25),
         "'climatology' of 'baselines' was .*: reference_mg_dl of the night .* is 111.25, not "),
        (pd.concat([SCORES, MANY]),
         "'context 96' of 'context' (ttm) was scored twice on the night of subject 'p01'"),
        (SCORES.drop(MANY.index[-1]),
         "'context 96' of 'context' (ttm) was scored on other nights with one seed than with an"),
        (SCORES.drop(columns="crps_mg_dl"), "some scores lack crps_mg_dl: they were made by anoth"),
        (changed(SCORES, "context 96", mse=np.nan), "some scores lack a measure"),
        (SCORES.assign(split="validation"), "no test night was scored; splits: validation. Give"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(scores: pd.DataFrame, message: str) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InputError, match=pattern):
        rows_of(scores, group_of("late", SCORES[SCORES["origin"] > "2026-01-07"]))


def with_lows(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with a low in a third of the nights, foreseen the better the later the cell."""
    draw = np.random.default_rng(5)
    nights = scores[NIGHT].drop_duplicates()
    nights["low_happened"] = draw.random(len(nights)) < 0.33
    scores = scores.merge(nights, on=NIGHT)
    place = scores.groupby(["question", "cell"], sort=False).ngroup()
    said = draw.random(len(scores)) + 0.1 * place * scores["low_happened"]
    return scores.assign(low_probability=(said / said.max()).round(3))


def test_lows_are_told_apart_as_the_table_of_alarms_tells_them() -> None:
    """One seed and every night: the value, its interval, and a difference by hand."""
    from sklearn.metrics import roc_auc_score

    one = tuple((*cell[:4], cell[4][:1]) for cell in CELLS)
    scores = with_lows(invent_scores(one))
    table = rows_of(scores)
    told = scores.drop(columns="low_happened").assign(
        model=scores["cell"],
        data="d",
        very_low_probability=scores["low_probability"],
    )
    outcomes = invent_nights().merge(scores[[*NIGHT, "low_happened"]].drop_duplicates(), on=NIGHT)
    outcomes = outcomes.assign(
        very_low_happened=outcomes["low_happened"], low_onset=3, very_low_onset=3, low_usual=0.3,
        very_low_usual=0.3, carbs_after=0.0, suspended=0.0, last_mg_dl=120.0,
    )  # fmt: skip
    board = rank_alarms(told, outcomes.drop(columns=["points", "reference_mg_dl"]), QUICK)
    board = board[(board["low"] == "low") & (board["nights_chosen"] == "all")]
    board = board.set_index(["split", "model"])
    for (split, _, _, cell, _), row in table.iterrows():
        usual = board.loc[split, cell]
        names = ["auroc", "auroc_low", "auroc_high"]
        np.testing.assert_allclose(row[names].astype(float), usual[names].astype(float))
        assert row["lows"] == usual["lows"]
        own = scores[(scores["split"] == split) & (scores["cell"] == cell)]
        assert row["auroc"] == pytest.approx(
            roc_auc_score(own["low_happened"], own["low_probability"])
        )
    short, whole = (
        table.loc["patient", "all", "context", c, "ttm"] for c in ("context 96", "context 288")
    )
    assert short["auroc_difference"] == pytest.approx(short["auroc"] - whole["auroc"])
    assert (
        short["auroc_difference_low"] < short["auroc_difference"] < short["auroc_difference_high"]
    )
    assert np.isnan(whole["auroc_difference"])


def test_seeds_are_averaged_and_nights_without_a_low_tell_nothing() -> None:
    scores = with_lows(invent_scores())
    table = rows_of(scores)
    of_seeds = [rows_of(scores[(scores["seed"] == s) | scores["seed"].isna()]) for s in (0, 1, 2)]
    key = ("temporal", "all", "context", "context 96", "ttm")
    assert table.loc[key, "auroc"] == pytest.approx(
        np.mean([own.loc[key, "auroc"] for own in of_seeds])
    )
    spared = scores.assign(low_happened=scores["low_happened"] & (scores["split"] == "patient"))
    quiet = rows_of(spared)
    assert quiet.loc["temporal"][["auroc", "auroc_low", "auroc_difference"]].isna().all(axis=None)
    assert (quiet.loc["temporal"]["lows"] == 0).all()
    assert quiet.loc["patient"]["auroc"].notna().all()
    assert "auroc" not in rows_of(invent_scores())


def test_where_no_cell_is_compared_each_stands_alone() -> None:
    """As on all nights of a transfer: cells are compared on those of each group alone."""
    scores = with_lows(invent_scores())
    usual, alone = rows_of(scores), rows_of(scores.assign(against=""))
    names = ["rmse_mg_dl", "rmse_low_mg_dl", "auroc", "auroc_high", "lows"]
    pd.testing.assert_frame_equal(alone[names], usual[names])
    differences = ["difference_mg_dl", "auroc_difference", "auroc_difference_low", "win_rate"]
    assert alone[differences].isna().all(axis=None)
    assert not alone["apart"].any()
