"""Experiments side by side in one data_root: each asks its own question, and none trains twice."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.framework.context import KedroContext

from nocturnal_kedro import plugins
from nocturnal_kedro.metrics.cards import NightCard
from nocturnal_kedro.pipelines.reporting.nodes import TABLES
from nocturnal_kedro.series.schema import SLOT, TEST_SPLITS
from tests.conftest import Run

pytestmark = pytest.mark.slow

BASELINES = plugins.names("baseline")
OF_TASK = {
    "origins": "05_model_input/origins.csv",
    "outcomes": "05_model_input/outcomes.parquet",
    "tally": "08_reporting/tally.csv",
    "audit": "05_model_input/audit.csv",
}
SEEDS = (7, 8)  # the first is that of the finished run


@pytest.fixture(scope="module")
def beside(
    finished: tuple[Path, KedroContext], run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, KedroContext]]:
    """What `nocturnal_point` left, and beside it the two other experiments with two seeds."""
    data_root = tmp_path_factory.mktemp("beside")
    shutil.copytree(finished[0], data_root, dirs_exist_ok=True)
    return data_root, {
        name: run(data_root, pipeline=name, models="ttm", seeds=" ".join(map(str, SEEDS)))
        for name in ("prandial", "nocturnal_probabilistic")
    }


def of_all(context: KedroContext, experiment: str) -> pd.DataFrame:
    return context.catalog.load(f"{experiment}.leaderboard")


def versions_of(file: Path) -> list[Path]:
    return sorted(file.glob(f"*/{file.name}"))


def trained(data_root: Path) -> dict[str, int]:
    """When each file of the trainings that are kept was written, in ns."""
    root = data_root / "06_models" / "trained"
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("experiment", ["prandial", "nocturnal_probabilistic"])
def test_every_seed_counts_in_the_leaderboard(
    experiment: str, beside: tuple[Path, dict[str, KedroContext]]
) -> None:
    context = beside[1][experiment]
    board = of_all(context, experiment).set_index(["split", "model"])
    assert sorted(board.index) == sorted((s, m) for s in TEST_SPLITS for m in ("ttm", *BASELINES))
    assert board["seeds"].xs("ttm", level="model").tolist() == [len(SEEDS)] * len(TEST_SPLITS)
    assert (board["seeds"].drop("ttm", level="model") == 1).all()
    by_seed = [
        context.catalog.load(f"{experiment}.{lane}.scores").assign(seed=seed)
        for lane, seed in zip(("ttm", "ttm-8"), SEEDS, strict=True)
    ]
    errors = pd.concat(by_seed)
    squared = errors["mse"] * errors["points"]
    of_people = [errors["split"], errors["seed"], errors["source"], errors["subject"]]
    of_seeds = np.sqrt(
        squared.groupby(of_people).sum() / errors["points"].groupby(of_people).sum()
    ).groupby(["split", "seed"]).mean()  # fmt: skip
    for split in TEST_SPLITS:
        assert of_seeds[split].nunique() == len(SEEDS)  # they are two trainings
        row = board.loc[(split, "ttm")]
        assert row["rmse_mg_dl"] == pytest.approx(of_seeds[split].mean(), abs=1e-9)
        assert row["rmse_seed_sd_mg_dl"] == pytest.approx(of_seeds[split].std(), abs=1e-9)


def test_the_probabilistic_board_is_ranked_by_what_it_asks_for(
    beside: tuple[Path, dict[str, KedroContext]], finished: tuple[Path, KedroContext]
) -> None:
    ranked = of_all(beside[1]["nocturnal_probabilistic"], "nocturnal_probabilistic")
    by_error = of_all(finished[1], "nocturnal_point")
    for split in TEST_SPLITS:
        assert ranked.loc[ranked["split"] == split, "crps_mg_dl"].is_monotonic_increasing
        assert by_error.loc[by_error["split"] == split, "rmse_mg_dl"].is_monotonic_increasing
    # The two orders differ here, so that one of them is not the other by chance.
    within = ranked.groupby("split")["rmse_mg_dl"]
    assert not within.apply(lambda errors: errors.is_monotonic_increasing).all()


def test_cards_are_of_test_nights_of_the_models_alone(
    beside: tuple[Path, dict[str, KedroContext]],
) -> None:
    data_root, contexts = beside
    context, experiment = contexts["nocturnal_probabilistic"], "nocturnal_probabilistic"
    files = sorted(data_root.rglob("*_night_cards.json/*/*.json"))
    assert [file.name for file in files] == ["ttm_night_cards.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    cards = [
        NightCard.model_validate(card)
        for card in json.loads(files[0].read_text(), parse_constant=refuse)
    ]
    lows = context.catalog.load(f"{experiment}.ttm.lows").set_index(["subject", "origin"])
    for card in cards:
        told = lows.loc[(card.subject, pd.Timestamp(card.origin))]
        assert (card.experiment, card.model) == (experiment, "ttm")
        assert card.split == told["split"]
        assert card.split in TEST_SPLITS
        for low, said in (("low", card.low), ("very_low", card.very_low)):
            assert said.probability == pytest.approx(told[f"{low}_probability"], abs=5e-4)
    assert {card.split for card in cards} == set(TEST_SPLITS)
    page = context.catalog.load(f"{experiment}.report")
    assert all(f"Night card {n}: {card.chosen}" in page for n, card in enumerate(cards, 1))


def test_meals_are_those_on_record_three_hours_ahead(
    beside: tuple[Path, dict[str, KedroContext]],
) -> None:
    catalog = beside[1]["prandial"].catalog
    origins = catalog.load("prandial.origins")
    assert origins["origin"].dt.time.nunique() > 20
    eaten = catalog.load("series").set_index(["subject", "time"])["carbs_g"].fillna(0)
    for person, meals in origins.groupby("subject"):
        carbs = eaten[person]
        for origin in meals["origin"]:
            assert carbs[origin] >= 10
            assert (carbs[origin - 12 * SLOT : origin - SLOT] == 0).all()
    for model in ("ttm", "ttm-8", *BASELINES):
        forecasts = catalog.load(f"prandial.{model}.forecasts")
        assert len(forecasts) == 36 * (origins["split"] != "train").sum()
        task = catalog.load(f"prandial.{model}.model").record["task"]
        assert (task["anchor"], task["context_steps"]) == ("meal", 288)


def test_the_table_of_meals_is_that_of_the_saved_peaks(
    beside: tuple[Path, dict[str, KedroContext]],
) -> None:
    catalog = beside[1]["prandial"].catalog
    table = catalog.load("prandial.meals").set_index(["split", "meal_size", "model"])
    peaks = pd.concat(catalog.load(f"prandial.{lane}.peaks") for lane in ("ttm", "ttm-8"))
    assert set(table.index.get_level_values("model")) == {"ttm", *BASELINES}
    sizes = set(peaks.loc[peaks["split"].isin(TEST_SPLITS), "meal_size"])
    assert set(table.index.get_level_values("meal_size")) == {"all", *sizes}
    assert len(sizes) >= 3
    for split in TEST_SPLITS:
        of_size = table.loc[split]["meals"].xs("ttm", level="model")
        assert of_size.drop("all").sum() == of_size["all"] > 20
    for (split, size), rows in table.xs("ttm", level="model").groupby(["split", "meal_size"]):
        own = peaks[peaks["split"] == split]
        own = own if size == "all" else own[own["meal_size"] == size]
        by_person = own.groupby(["seed", "subject"])
        height = by_person["peak_error_mg_dl"].agg(lambda errors: errors.abs().mean())
        minutes = by_person["peak_time_error_minutes"].agg(lambda errors: errors.abs().mean())
        [row] = rows.to_dict("records")
        assert row["seeds"] == len(SEEDS)
        for name, of_people in (
            ("peak_mae_mg_dl", height), ("peak_time_mae_minutes", minutes)
        ):  # fmt: skip
            expected = of_people.groupby("subject").mean().mean()
            assert row[name] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_task_of_its_own_leaves_everybodys_tables_alone(
    beside: tuple[Path, dict[str, KedroContext]], finished: tuple[Path, KedroContext]
) -> None:
    data_root = beside[0]
    own = beside[1]["prandial"].catalog
    for name, file in OF_TASK.items():
        [before] = versions_of(finished[0] / file)
        first, second = versions_of(data_root / file)  # the second is of the probabilistic run
        assert first.read_bytes() == second.read_bytes() == before.read_bytes(), name
        assert not own.load(name).equals(own.load(f"prandial.{name}")), name
    assert own.load("prandial.audit")["passed"].all()
    assert own.load("prandial.audit")["data"].iloc[0] != own.load("audit")["data"].iloc[0]


def test_one_experiment_takes_the_models_that_another_has_trained(
    beside: tuple[Path, dict[str, KedroContext]], finished: tuple[Path, KedroContext]
) -> None:
    """On the same question one training is enough: the probabilistic lane of seed 7 is the same."""
    catalog = beside[1]["nocturnal_probabilistic"].catalog
    keys = {
        model: catalog.load(f"nocturnal_probabilistic.{model}.model").record["key"]
        for model in ("ttm", "ttm-8", *BASELINES)
    }
    for model in ("ttm", *BASELINES):
        before = finished[1].catalog.load(f"nocturnal_point.{model}.model").record["key"]
        assert keys[model] == before
    assert keys["ttm"] != keys["ttm-8"]
    meals = beside[1]["prandial"].catalog
    assert meals.load("prandial.ttm.model").record["key"] not in keys.values()


def test_the_same_run_again_trains_nothing_and_gives_the_same_tables(
    beside: tuple[Path, dict[str, KedroContext]], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """After the other experiments, first from what was saved and then from the start."""
    data_root = beside[0]
    tables = [data_root / "08_reporting/nocturnal_point" / f"{name}.csv" for name in TABLES]
    before = {table: versions_of(table)[-1] for table in tables}
    kept = trained(data_root)
    caplog.set_level(logging.INFO, "nocturnal_kedro")
    for pipeline in ("reporting", "nocturnal_point"):
        caplog.clear()
        run(data_root, pipeline=pipeline)
        for table, first in before.items():
            again = versions_of(table)[-1]
            assert again != first
            assert again.read_bytes() == first.read_bytes(), table.name
    assert trained(data_root) == kept
    found = [line for line in caplog.messages if "was trained before with the same data" in line]
    assert len(found) == 2 + len(BASELINES)
