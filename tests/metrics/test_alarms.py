import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy.stats import binned_statistic
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics import alarms
from nocturnal_kedro.metrics.alarms import (
    NIGHTS,
    RELIABILITY_EDGES,
    rank_alarms,
    reliability,
    trade_off,
)
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART, Comparison
from nocturnal_kedro.metrics.forecasts import NIGHT

SPLITS = {"validation": (0, 9), "patient": (9, 17), "temporal": (0, 7), "train": (0, 3)}
COMPARISON = Comparison(resamples=400)
Frames = tuple[pd.DataFrame, pd.DataFrame]


def invent(seed: int = 0, nights: int = 12) -> Frames:
    """What two models said, and what came: `sharp` knows more than `dull`."""
    draw = np.random.default_rng(seed)
    rows = [
        (
            "s",
            f"p{person}",
            pd.Timestamp("2026-01-05") + pd.Timedelta(days=100 * block + day),
            split,
        )
        for block, (split, people) in enumerate(SPLITS.items())
        for person in range(*people)
        for day in range(nights)
    ]
    outcomes = pd.DataFrame(rows, columns=[*NIGHT, "split"])
    size = len(outcomes)
    risk = draw.beta(1.5, 4, size)
    carbs, stopped = (draw.choice([0.0, 1.0, np.nan], size, p=[0.6, 0.2, 0.2]) for _ in range(2))
    outcomes = outcomes.assign(
        last_mg_dl=draw.uniform(48, 200, size).round(1), carbs_after=carbs, suspended=stopped
    )
    told = outcomes[[*NIGHT, "split"]]
    models = {"sharp": 0.03, "dull": 0.3}
    told = pd.concat([told.assign(model=name, data="d") for name in models], ignore_index=True)
    for low, share in (("low", 1.0), ("very_low", 0.4)):
        happened = draw.random(size) < share * risk
        outcomes[f"{low}_happened"] = happened
        outcomes[f"{low}_onset"] = np.where(happened, draw.integers(1, 95, size), 0)
        outcomes[f"{low}_usual"] = np.repeat(draw.uniform(0.1, 0.4, size // nights), nights)
        said = [np.clip(share * risk + draw.normal(0, off, size), 0, 1) for off in models.values()]
        told[f"{low}_probability"] = np.concatenate(said).round(3)
    return told[told["split"] != "train"].reset_index(drop=True), outcomes


@pytest.fixture(scope="module")
def frames() -> Frames:
    return invent()


@pytest.fixture(scope="module")
def ranked(frames: Frames) -> pd.DataFrame:
    return rank_alarms(*frames, COMPARISON)


def of(frames: Frames, split: str, model: str = "sharp") -> pd.DataFrame:
    told, outcomes = frames
    judged = told.merge(outcomes.drop(columns="split"), on=NIGHT)
    return judged[(judged["split"] == split) & (judged["model"] == model)]


def find(table: pd.DataFrame, split: str, low: str, nights: str, model: str) -> pd.Series:
    columns = ["split", "low", "nights_chosen", "model"]
    return table.set_index(columns).loc[(split, low, nights, model)]


CHOSEN = {
    "all": lambda n, edge: n,
    "no carbs after": lambda n, edge: n.query("carbs_after == 0"),
    "no rescue": lambda n, edge: n.query("carbs_after == 0 and suspended == 0"),
    "not low at the origin": lambda n, edge: n[n["last_mg_dl"] >= edge],
}


def test_there_is_a_row_for_every_split_low_choice_and_model(ranked: pd.DataFrame) -> None:
    assert list(NIGHTS) == list(CHOSEN)
    assert len(ranked) == 2 * 2 * 4 * 2
    assert set(ranked["split"]) == {"patient", "temporal"}


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("low", ["low", "very_low"])
def test_figures_of_each_choice_of_nights_are_scikit_learns(
    name: str, low: str, frames: Frames, ranked: pd.DataFrame
) -> None:
    for split in ("patient", "temporal"):
        for model in ("sharp", "dull"):
            row = find(ranked, split, low, name, model)
            nights = CHOSEN[name](of(frames, split, model), {"low": 70, "very_low": 54}[low])
            came, said = nights[f"{low}_happened"], nights[f"{low}_probability"]
            rung = said >= row["threshold"] - 1e-9
            leads = 5 * nights[f"{low}_onset"][rung & came]
            brier = brier_score_loss(came, said)
            expected = {
                "people": nights["subject"].nunique(),
                "nights": len(nights),
                "lows": came.sum(),
                "base_rate_pct": 100 * came.mean(),
                "auroc": roc_auc_score(came, said),
                "average_precision": average_precision_score(came, said),
                "brier": brier,
                "brier_skill": 1 - brier / ((nights[f"{low}_usual"] - came) ** 2).mean(),
                "sensitivity_pct": 100 * recall_score(came, rung),
                "precision_pct": 100 * precision_score(came, rung),
                "f1": f1_score(came, rung),
                "false_alarms_per_night": (rung & ~came).mean(),
                "lead_minutes": leads.median(),
                "lead_quartile_1_minutes": leads.quantile(0.25),
                "lead_quartile_3_minutes": leads.quantile(0.75),
            }
            assert row[list(expected)].astype(float).to_dict() == pytest.approx(expected)
            for figure in ("auroc", "average_precision", "brier", "brier_skill"):
                assert row[f"{figure}_low"] < row[figure] < row[f"{figure}_high"]
            at = said.to_numpy()[:, None] >= np.arange(1001) / 1000 - 1e-9
            few = at[~came].sum(axis=0) / len(nights) <= 1 / 7
            assert row["sensitivity_weekly_pct"] == 100 * at[came][:, few].mean(axis=0).max()


def test_what_is_not_on_record_is_not_without_a_rescue(frames: Frames) -> None:
    _, outcomes = frames
    for name, columns in (("no carbs after", 1), ("no rescue", 2)):
        chosen = outcomes[NIGHTS[name](outcomes, "low")]
        unknown = chosen[["carbs_after", "suspended"][:columns]].isna()
        assert not unknown.any(axis=None)
        assert 0 < len(chosen) < len(outcomes)


def test_the_better_model_comes_first_and_the_other_is_told_apart(ranked: pd.DataFrame) -> None:
    whole = ranked.query("nights_chosen == 'all' and low == 'low'").set_index(["split", "model"])
    assert whole.index.get_level_values("model").tolist() == ["sharp", "dull"] * 2
    assert whole["tied_with_best"].tolist() == [True, False] * 2


def test_few_people_are_tied(frames: Frames) -> None:
    told, outcomes = (some[some["subject"].isin(["p9", "p10", "p11", "p12", "p13"])]
                      for some in frames)  # fmt: skip
    assert rank_alarms(told, outcomes, COMPARISON)["tied_with_best"].all()


def test_thresholds_are_chosen_on_validation_alone(frames: Frames, ranked: pd.DataFrame) -> None:
    told, outcomes = frames
    for low in ("low", "very_low"):
        for model in ("sharp", "dull"):
            nights = of(frames, "validation", model)
            said, came = nights[f"{low}_probability"], nights[f"{low}_happened"]
            false = np.rint(1000 * said[~came]).to_numpy()
            lowest = next(c for c in range(1001) if (false >= c).sum() <= len(nights) / 7)
            got = ranked.query("low == @low and model == @model")["threshold"]
            np.testing.assert_allclose(got, lowest / 1000)

    other = {"patient": ("low_probability", told), "temporal": ("low_happened", outcomes)}
    for split, (column, table) in other.items():  # of the test nights anything may change
        at = table["split"] == split
        table = table.copy()
        table.loc[at, column] = table.loc[at, column].to_numpy()[::-1]
        changed = (table, outcomes) if column == "low_probability" else (told, table)
        again = rank_alarms(*changed, COMPARISON)
        key = ["split", "low", "nights_chosen", "model"]
        both = again.merge(ranked, on=key, suffixes=("", "_before"))
        np.testing.assert_array_equal(both["threshold"], both["threshold_before"])
        assert (both["auroc"] != both["auroc_before"]).any()

    flipped = outcomes.assign(
        low_happened=outcomes["low_happened"] ^ (outcomes["split"] == "validation")
    )
    again = rank_alarms(told, flipped, COMPARISON)
    assert (again.query("low == 'low'")["threshold"].to_numpy()
            != ranked.query("low == 'low'")["threshold"].to_numpy()).all()  # fmt: skip


def test_without_validation_nights_there_is_no_alarm(frames: Frames) -> None:
    told, outcomes = (table[table["split"] != "validation"] for table in frames)
    table = rank_alarms(told, outcomes, COMPARISON)
    alarm = ["threshold", "sensitivity_pct", "precision_pct", "f1", "lead_minutes"]
    assert table[alarm].isna().all(axis=None)
    assert table["auroc"].notna().all()


def test_without_a_low_the_figures_that_need_one_are_nan(frames: Frames) -> None:
    told, outcomes = frames
    outcomes = outcomes.assign(very_low_happened=False, very_low_onset=0)
    table = rank_alarms(told, outcomes, COMPARISON).query("low == 'very_low'")
    assert table[["auroc", "average_precision", "sensitivity_pct"]].isna().all(axis=None)
    assert table["brier"].notna().all()
    assert table["tied_with_best"].all()


def test_a_night_of_which_nothing_is_known_is_named(frames: Frames) -> None:
    told, outcomes = frames
    with pytest.raises(InputError, match="24 nights that were forecast, the first of subject 'p9'"):
        rank_alarms(told, outcomes[outcomes["subject"] != "p9"], COMPARISON)


def test_nights_of_other_splits_or_of_one_model_alone_are_told(frames: Frames) -> None:
    told, outcomes = frames
    stale = told.assign(split=told["split"].replace("temporal", "patient"))
    with pytest.raises(InputError, match="nothing is known of what came of 168 nights"):
        rank_alarms(stale, outcomes, COMPARISON)
    fewer = told.drop(index=told.index[told["model"] == "dull"][0])
    for judge in (trade_off, lambda *of: rank_alarms(*of, COMPARISON)):
        with pytest.raises(InputError, match="dull foresaw other nights than the frozen"):
            judge(fewer, outcomes)


def test_the_order_of_nights_does_not_matter(frames: Frames, ranked: pd.DataFrame) -> None:
    shuffled = (some.sample(frac=1, random_state=3) for some in frames)
    assert_frame_equal(rank_alarms(*shuffled, COMPARISON), ranked)


@pytest.fixture(scope="module")
def traded(frames: Frames) -> pd.DataFrame:
    return trade_off(*frames)


def test_every_row_of_the_trade_off_is_its_alarm(frames: Frames, traded: pd.DataFrame) -> None:
    assert len(traded) < 2 * 2 * 2 * 600
    for (split, low, model), rows in traded.groupby(["split", "low", "model"]):
        nights = of(frames, split, model)
        came = nights[f"{low}_happened"].to_numpy()
        rung = (
            nights[f"{low}_probability"].to_numpy()[:, None] >= rows["threshold"].to_numpy() - 1e-9
        )
        true, false = (rung & came[:, None]).sum(axis=0), (rung & ~came[:, None]).sum(axis=0)
        np.testing.assert_allclose(rows["sensitivity_pct"], 100 * true / came.sum())
        np.testing.assert_allclose(rows["false_alarms_per_week"], 7 * false / len(nights))
        odds = rows["threshold"] / (1 - rows["threshold"])
        below = (rows["threshold"] < 1).to_numpy()
        benefit = (true - odds * false) / len(nights)
        np.testing.assert_allclose(rows["net_benefit"][below], benefit[below])
        always = came.mean() - odds * (1 - came.mean())
        np.testing.assert_allclose(rows["net_benefit_always"][below], always[below])


def test_alarms_of_several_origins_in_a_night_add_up_to_its_rate() -> None:
    """Each night asked three times, with the same answers: three times as many false alarms."""
    told, outcomes = invent()
    hours = [pd.Timedelta(hours=h) for h in (-1, 0, 3)]
    thrice = [
        pd.concat([table.assign(origin=table["origin"] + h) for h in hours], ignore_index=True)
        for table in (told, outcomes)
    ]
    once, often = trade_off(told, outcomes), trade_off(*thrice)
    np.testing.assert_allclose(often["false_alarms_per_week"], 3 * once["false_alarms_per_week"])
    same = ["sensitivity_pct", "precision_pct", "net_benefit", "net_benefit_always"]
    assert_frame_equal(often[same], once[same])

    table = rank_alarms(*thrice, COMPARISON).query("nights_chosen == 'all'")
    for row in table.itertuples():
        validation = of(tuple(thrice), "validation", row.model)
        false = ~validation[f"{row.low}_happened"]
        false &= validation[f"{row.low}_probability"] >= row.threshold - 1e-9
        nights = len(validation) / 3
        assert false.sum() <= nights / 7  # all origins' together: one a week, not three
        tested = of(tuple(thrice), row.split, row.model)
        false = ~tested[f"{row.low}_happened"]
        false &= tested[f"{row.low}_probability"] >= row.threshold - 1e-9
        assert row.false_alarms_per_night == pytest.approx(false.sum() / (len(tested) / 3))
        curve = often.query("split == @row.split and low == @row.low and model == @row.model")
        allowed = curve[curve["false_alarms_per_week"] <= 1 + 1e-9]
        assert row.sensitivity_weekly_pct == pytest.approx(allowed["sensitivity_pct"].max())


def test_a_line_through_the_trade_off_is_the_curve_of_all_thresholds() -> None:
    """Also of few nights told alike, where net benefit falls between two alarms."""
    told, outcomes = invent(1, nights=3)
    told["low_probability"] = told["low_probability"].round(1).clip(0.1)
    threshold = np.arange(10, 501) / 1000
    for (split, low, model), rows in trade_off(told, outcomes).groupby(["split", "low", "model"]):
        nights = of((told, outcomes), split, model)
        came = nights[f"{low}_happened"].to_numpy()[:, None]
        rung = nights[f"{low}_probability"].to_numpy()[:, None] >= threshold - 1e-9
        odds = threshold / (1 - threshold)
        exact = ((rung & came).sum(axis=0) - odds * (rung & ~came).sum(axis=0)) / len(nights)
        drawn = np.interp(threshold, rows["threshold"], rows["net_benefit"])
        np.testing.assert_allclose(drawn, exact, atol=2e-4)


def test_reliability_has_the_bins_of_scipy_and_scikit_learn(
    frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bins hold their lower edge; in scikit-learn's, which are even, their upper one."""
    table = reliability(*frames, COMPARISON)
    for (split, low, model), rows in table.groupby(["split", "low", "model"]):
        nights = of(frames, split, model)
        said, came = nights[f"{low}_probability"], nights[f"{low}_happened"]
        for column, value, statistic in (
            ("nights", said, "count"), ("said_pct", 100 * said, "mean"),
            ("happened_pct", 100.0 * came, "mean"),
        ):  # fmt: skip
            expected = binned_statistic(said, value, statistic, RELIABILITY_EDGES).statistic
            kept = ~np.isnan(expected) & (expected > 0 if column == "nights" else True)
            np.testing.assert_allclose(rows[column], expected[kept])
        low_end, high_end = (rows[f"happened_{end}_pct"] for end in ("low", "high"))
        bin_of = np.digitize(said, RELIABILITY_EDGES[1:-1])
        people = nights.groupby(bin_of)["subject"].nunique().to_numpy()
        assert list(low_end.isna()) == list(people < FEWEST_TO_TELL_APART)
        assert (low_end.isna() | rows["happened_pct"].between(low_end, high_end)).all()
        assert rows["nights"].sum() == len(nights)

    monkeypatch.setattr(alarms, "RELIABILITY_EDGES", np.linspace(0, 1, 8))  # at no thousandth
    for (split, low, model), rows in reliability(*frames, COMPARISON).groupby(
        ["split", "low", "model"]
    ):
        nights = of(frames, split, model)
        happened, said = calibration_curve(
            nights[f"{low}_happened"], nights[f"{low}_probability"], n_bins=7
        )
        np.testing.assert_allclose(rows["said_pct"], 100 * said)
        np.testing.assert_allclose(rows["happened_pct"], 100 * happened)
