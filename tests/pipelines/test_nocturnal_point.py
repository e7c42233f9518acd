"""The whole experiment, end to end, on the simulated cohort and on real recordings."""

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from kedro.framework.context import KedroContext
from kedro.runner import ThreadRunner
from sklearn.metrics import roc_auc_score

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, StoppedError
from nocturnal_kedro.metrics.events import LOWS
from nocturnal_kedro.pipelines.reporting.nodes import TABLES
from nocturnal_kedro.series.schema import TEST_SPLITS
from tests.conftest import SMALL, TRAINED, Run

BASELINES = plugins.names("baseline")
MEASURED = [
    "rmse_mg_dl", "rmse_pooled_mg_dl", "crps_mg_dl", "coverage_80_pct", "mae_mg_dl", "mape_pct",
    "skill_vs_last_value",
    "clarke_a_pct", "clarke_ab_pct", "parkes_ab_pct", "dts_ab_pct", "crps_below_70_mg_dl",
    "brier_70", "under_q0.05_pct", "win_rate",
]  # fmt: skip


def board_of(context: KedroContext) -> pd.DataFrame:
    return context.catalog.load("nocturnal_point.leaderboard").set_index(["split", "model"])


def rmse_from_forecasts(context: KedroContext, model: str, split: str, steps: int) -> np.ndarray:
    """(subject-macro, pooled) RMSE, from the saved forecasts and the frozen table alone."""
    rows = context.catalog.load(f"nocturnal_point.{model}.forecasts").merge(
        context.catalog.load("origins"), on=["source", "subject", "origin"]
    )
    rows = rows[(rows["split"] == split) & (rows["step"] <= steps)].dropna(subset="target_mg_dl")
    square = (rows["forecast_mg_dl"] - rows["target_mg_dl"]) ** 2
    by_subject = square.groupby([rows["source"], rows["subject"]]).mean()
    return np.array([np.sqrt(by_subject).mean(), np.sqrt(square.mean())])


def test_leaderboard_has_every_model_split_and_column(
    finished: tuple[Path, KedroContext],
) -> None:
    board = board_of(finished[1])
    assert sorted(board.index) == sorted(
        (split, model) for split in TEST_SPLITS for model in ("ttm", "chronos2", *BASELINES)
    )
    columns = {"nights", "subjects", *MEASURED, *(f"{name}_6h" for name in MEASURED)}
    assert columns <= set(board)
    assert board[sorted(columns)].notna().all().all()
    assert (board.xs("last_value", level="model")["skill_vs_last_value"] == 0).all()


@pytest.mark.parametrize("split", TEST_SPLITS)
@pytest.mark.parametrize("model", ["ttm", "chronos2", *BASELINES])
def test_leaderboard_rmse_is_that_of_the_saved_forecasts(
    finished: tuple[Path, KedroContext], model: str, split: str
) -> None:
    row = board_of(finished[1]).loc[(split, model)]
    for suffix, steps in (("", 96), ("_6h", 72)):
        expected = rmse_from_forecasts(finished[1], model, split, steps)
        got = row[[f"rmse_mg_dl{suffix}", f"rmse_pooled_mg_dl{suffix}"]].to_numpy(float)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_every_model_is_asked_the_same_nights(finished: tuple[Path, KedroContext]) -> None:
    catalog = finished[1].catalog
    night = ["source", "subject", "origin", "step", "target_mg_dl"]
    first = catalog.load("nocturnal_point.ttm.forecasts")[night]
    origins = catalog.load("origins")
    assert len(first) == 96 * (origins["split"] != "train").sum()
    for model in ("chronos2", *BASELINES):
        other = catalog.load(f"nocturnal_point.{model}.forecasts")[night]
        pd.testing.assert_frame_equal(other, first)


@pytest.mark.slow
def test_every_trained_model_goes_from_raw_files_to_the_report(run: Run, tmp_path: Path) -> None:
    context = run(tmp_path, models=TRAINED)
    board = board_of(context)
    models = set(board.index.get_level_values("model"))
    assert models == {*TRAINED, *BASELINES}
    assert np.isfinite(board.select_dtypes(float)).all().all()
    page = context.catalog.load("nocturnal_point.report")
    assert all(f"<td>{name}</td>" in page for name in models)


@pytest.mark.slow
def test_a_fitted_model_starts_another_run(
    finished: tuple[Path, KedroContext], run: Run, tmp_path: Path
) -> None:
    """As it is, on the same people and splits; never on tested people that it has learnt from."""
    first = finished[1]
    weights = first.catalog["nocturnal_point.ttm.model"]._get_load_path()
    given = {"ttm": {"strategy": "zero_shot", "weights": str(weights)}}
    again = run(tmp_path / "again", models="ttm", model_options=given)
    for split in TEST_SPLITS:
        assert board_of(again).loc[(split, "ttm"), "rmse_mg_dl"] == pytest.approx(
            board_of(first).loc[(split, "ttm"), "rmse_mg_dl"], abs=1e-9
        )
    others = {"simulated": {"subjects": 8, "days": 14, "seed": 99}}
    with pytest.raises(Exception, match="people that are tested on now"):
        run(tmp_path / "b", models="ttm", model_options=given, source_options=others)


def test_names_that_users_rely_on(finished: tuple[Path, KedroContext]) -> None:
    catalog = finished[1].catalog
    assert list(catalog.load("origins")) == ["source", "subject", "origin", "split"]
    forecasts = catalog.load("nocturnal_point.chronos2.forecasts")
    assert list(forecasts)[:6] == [
        "source", "subject", "origin", "step", "target_mg_dl", "forecast_mg_dl"
    ]  # fmt: skip
    levels = [f"q{k:g}" for k in (0.01, *np.arange(1, 20) / 20, 0.99)]
    assert list(forecasts)[6:] == [*levels, *(f"raw_{name}" for name in levels)]
    assert list(catalog.load("nocturnal_point.last_value.forecasts"))[6:] == levels
    assert forecasts["target_mg_dl"].isna().any()  # a lost reading is no target
    for name in ("series", "corpus", "splits", "nocturnal_point.ttm.model"):
        assert catalog.exists(name)
    assert catalog.load("nocturnal_point.ttm.scores")["model"].unique().tolist() == ["ttm"]


def test_every_table_carries_every_model(finished: tuple[Path, KedroContext]) -> None:
    catalog = finished[1].catalog
    models = {"ttm", "chronos2", *BASELINES}
    for name in TABLES[2:]:
        assert set(catalog.load(f"nocturnal_point.{name}")["model"]) == models, name
    pairs = catalog.load("nocturnal_point.pairs")
    every = len(models) * (len(models) - 1) // 2
    assert pairs.groupby("split").size().to_dict() == dict.fromkeys(TEST_SPLITS, every)


def test_what_is_said_of_a_night_is_scored_by_what_came_of_it(
    finished: tuple[Path, KedroContext],
) -> None:
    """AUROC, base rate and lead of the table, from the two saved tables of nights alone."""
    catalog = finished[1].catalog
    told = catalog.load("nocturnal_point.ttm.lows").merge(
        catalog.load("outcomes"), on=["source", "subject", "origin", "split"]
    )
    board = catalog.load("nocturnal_point.alarms").query("nights_chosen == 'all'")
    board = board.set_index(["split", "low", "model"])
    assert len(told) == len(catalog.load("nocturnal_point.ttm.lows"))
    for (split, low), nights in [
        ((split, low), told[told["split"] == split]) for split in TEST_SPLITS for low in LOWS
    ]:
        row = board.loc[(split, low, "ttm")]
        happened = nights[f"{low}_happened"]
        assert row["base_rate_pct"] == pytest.approx(100 * happened.mean())
        if happened.nunique() == 2:
            expected = roc_auc_score(happened, nights[f"{low}_probability"])
            assert row["auroc"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_standard_evaluation_leaves_the_clinical_part_out(run: Run, finished_copy: Path) -> None:
    context = run(finished_copy, pipeline="evaluation,reporting", evaluation={"kind": "standard"})
    board = board_of(context)
    assert not [name for name in board if "clarke" in name or "brier" in name]
    assert {"rmse_mg_dl", "crps_mg_dl", "coverage_80_pct"} <= set(board)
    page = context.catalog.load("nocturnal_point.report")
    assert "Lows tonight" not in page
    assert "error grid" not in page.split('<section id="methods">')[0]
    with pytest.raises(Exception, match="'kind' Input should be 'standard' or 'clinical'"):
        run(finished_copy, pipeline="reporting", evaluation={"kind": "clinicl"})


def test_report_is_one_file_with_the_numbers_of_the_leaderboard(
    finished: tuple[Path, KedroContext],
) -> None:
    data_root, context = finished
    page = context.catalog.load("nocturnal_point.report")
    for (_, model), row in board_of(context).iterrows():
        assert f">{model}<" in page
        assert f"{row['rmse_mg_dl']:.2f}" in page
    assert context.catalog.load("nocturnal_point.ttm.model").record["data"] in page
    assert "the 90 % band of chronos2 held" in page
    assert len(list(data_root.rglob("report.html/*/report.html"))) == 1


def test_run_record_says_how_each_stage_was_made(finished: tuple[Path, KedroContext]) -> None:
    stages = json.loads((finished[0] / "08_reporting" / "run_record.json").read_text())["stages"]
    assert list(stages) == ["data_processing", "training", "evaluation", "reporting"]
    for record in stages.values():
        assert record["seconds"] > 0
        assert "--params" in record["command"]
        assert record["versions"]["torch"]
        assert record["git"].keys() == {"commit", "dirty"}
        assert record["parameters"]["sources"] == ["simulated"]
    assert stages["training"]["parameters"]["training"]["epochs"] == 2
    assert stages["training"]["parameters"]["task"]["horizon_steps"] == 96  # a default
    assert stages["data_processing"]["parameters"]["splits"]["patient_share"] == 0.15
    assert "training" not in stages["data_processing"]["parameters"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_leaderboard(
    finished: tuple[Path, KedroContext], run: Run, tmp_path: Path
) -> None:
    pd.testing.assert_frame_equal(board_of(run(tmp_path)), board_of(finished[1]), check_exact=True)


@pytest.mark.slow
def test_only_the_models_asked_for_run(run: Run, tmp_path: Path) -> None:
    context = run(tmp_path, models="ttm")
    assert set(board_of(context).index.get_level_values("model")) == {"ttm", *BASELINES}
    assert "chronos2" not in context.catalog.load("nocturnal_point.report").split("<script>")[0]
    assert not list(tmp_path.rglob("chronos2*"))


@pytest.mark.slow
def test_stages_run_one_after_the_other_and_repeat_nothing(run: Run, tmp_path: Path) -> None:
    for stage in ("data_processing", "training", "evaluation", "reporting"):
        context = run(tmp_path, pipeline=stage, models="ttm")
    before = board_of(context)
    artifacts = sorted(tmp_path.rglob("weights.safetensors"))
    again = run(tmp_path, pipeline="evaluation", models="ttm")
    assert sorted(tmp_path.rglob("weights.safetensors")) == artifacts
    pd.testing.assert_frame_equal(board_of(again), before)


@pytest.mark.slow
def test_a_stage_that_is_not_repeated_keeps_its_record(run: Run, tmp_path: Path) -> None:
    given = {"models": "ttm", "splits": {"seed": 3}}
    run(tmp_path, **given)
    record = json.loads((tmp_path / "08_reporting" / "run_record.json").read_text())
    other = {**SMALL["training"], "epochs": 9}  # not what the model was trained with
    again = run(tmp_path, pipeline="reporting", models="ttm", training=other)
    now = again.catalog.load("run_record")
    for stage in ("data_processing", "training", "evaluation"):
        assert now["stages"][stage] == record["stages"][stage]
    assert now["stages"]["reporting"]["run_id"] != record["stages"]["reporting"]["run_id"]
    with pytest.raises(Exception, match="unknown source"):
        run(tmp_path, sources="aztid", **given)
    kept = json.loads((tmp_path / "08_reporting" / "run_record.json").read_text())
    assert kept == now


@pytest.mark.slow
def test_a_lost_record_costs_no_result(run: Run, finished_copy: Path) -> None:
    """The file that an error may tell one to delete is not needed for anything but its history."""
    (finished_copy / "08_reporting" / "run_record.json").unlink()
    nodes = ["nocturnal_point.rank_models", "nocturnal_point.write_report"]
    context = run(finished_copy, models="ttm", nodes=nodes)
    stages = context.catalog.load("run_record")["stages"]
    assert list(stages) == ["reporting"]
    assert f"--nodes={','.join(nodes)}" in stages["reporting"]["command"]
    assert "Some people are held out whole" in context.catalog.load("nocturnal_point.report")


@pytest.mark.slow
def test_a_model_is_not_scored_on_people_it_was_trained_on(run: Run, finished_copy: Path) -> None:
    run(finished_copy, pipeline="data_processing", splits={"seed": 1})
    with pytest.raises(Exception, match="may have seen what it would be tested on"):
        run(finished_copy, pipeline="evaluation", models="ttm")
    with pytest.raises(Exception, match="was made anew since"):
        run(finished_copy, pipeline="reporting", models="ttm")


@pytest.mark.parametrize(
    "again",
    [
        {"pipeline": "training", "task": {"horizon_steps": 48}},
        {"pipeline": "training", "task": {"coverage": 0.5}},
        {"pipeline": "nodes", "nodes": ["split_people"], "splits": {"seed": 3}},
    ],
)
def test_tables_of_different_runs_are_refused(again: dict, run: Run, finished_copy: Path) -> None:
    if again.pop("nodes", None):
        again.pop("pipeline")
        run(finished_copy, pipeline="data_processing", nodes=["split_people"], **again)
        again = {"pipeline": "training"}
    with pytest.raises(Exception, match=r"they are of different runs\. Run data_processing"):
        run(finished_copy, models="ttm", **again)


@pytest.mark.slow
def test_a_shorter_horizon_leaves_the_six_hours_out(run: Run, tmp_path: Path) -> None:
    board = board_of(run(tmp_path, models="ttm", task={"horizon_steps": 36}))
    assert board["rmse_mg_dl"].notna().all()
    assert not [name for name in board if name.endswith("_6h")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "stage", "message"),
    [
        ("run_record.json", "evaluation", "record of earlier runs cannot be read.*Delete that"),
        ("03_primary/series.parquet", "data_processing", None),
        ("prepared/*/series.parquet", "data_processing", "damaged.*Delete that folder"),
        ("weights.safetensors", "evaluation", "damaged: its SHA-256.*Run the training pipeline"),
        ("values_TC.npy", "training", "corpus"),
        ("splits.csv", "training", "different runs"),
        ("origins.csv", "training", "different runs"),
        ("ttm_forecasts.parquet", "reporting", "nocturnal_point.ttm.forecasts"),
    ],
)
def test_a_file_cut_short_is_named(
    file: str, stage: str, message: str | None, run: Run, finished_copy: Path
) -> None:
    for path in (path for path in finished_copy.rglob(file) if path.is_file()):
        text = path.read_bytes()
        path.write_bytes(text[: text.index(b"\n", len(text) // 2) + 1 if ".csv" in file else 20])
    if message is None:  # made anew
        run(finished_copy, pipeline=stage, models="ttm")
        return
    with pytest.raises(Exception, match=message):
        run(finished_copy, pipeline=stage, models="ttm")


@pytest.mark.slow
def test_a_training_that_is_cut_off_goes_on_by_the_same_command(run: Run, tmp_path: Path) -> None:
    long = {
        "models": "ttm",
        "training": {"epochs": 2, "steps_per_epoch": 100},
        "hardware": {"checkpoint_steps": 5},
    }
    cut_off, whole = tmp_path / "cut_off", tmp_path / "whole"
    unfinished = cut_off / "06_models/nocturnal_point/unfinished/ttm"

    def cut_off_once_kept() -> None:
        while not any(unfinished.glob("*/forecast/step-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    run(cut_off, pipeline="data_processing")
    Thread(target=cut_off_once_kept, daemon=True).start()
    with pytest.raises(StoppedError, match="the same command goes on from there"):
        run(cut_off, pipeline="training", **long)
    assert list(unfinished.iterdir())
    context = run(cut_off, pipeline="training", **long)
    assert not list(unfinished.iterdir())  # the model is saved
    expected = run(whole, pipeline="data_processing,training", **long)
    fitted, uncut = (ran.catalog.load("nocturnal_point.ttm.model") for ran in (context, expected))
    assert fitted.state.keys() == uncut.state.keys()
    assert all(np.array_equal(fitted.state[name], uncut.state[name]) for name in uncut.state)


@pytest.mark.slow
def test_threads_give_the_same_numbers(
    finished: tuple[Path, KedroContext], run: Run, tmp_path: Path
) -> None:
    threaded = board_of(run(tmp_path, runner=ThreadRunner()))
    pd.testing.assert_frame_equal(threaded, board_of(finished[1]), check_exact=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sources": "aztid"}, r"unknown source 'aztid'.*Did you mean 'azt1d'\?"),
        ({"sources": ""}, "'sources' is empty"),
        ({"sources": "azt1d", "raw_root": "/nowhere"}, r"no 'azt1d/CGM Records/.*' under"),
        ({"models": "ttn"}, r"unknown model 'ttn'.*Did you mean 'ttm'\?"),
        ({"models": ""}, "'models' is empty"),
        ({"models": None}, "'models' is empty"),
        ({"sources": None}, "'sources' is empty"),
        ({"raw_root": None}, "'raw_root' is empty"),
        ({"model_options": 5}, "'model_options' is 5; it holds options by name"),
        ({"trainin": {"epochs": 1}}, r"unknown parameter 'trainin'.*Did you mean 'training'\?"),
        ({"training": {"epoch": 1}}, r"parameter 'training': 'epoch' Extra.*Allowed: .*epochs"),
        ({"task": {"coverage": 2}}, r"parameter 'task': 'coverage' Input should be less than"),
        ({"model_options": {"ttn": {}}}, r"unknown model 'ttn'"),
        ({"model_options": {"ttm": {"d_modl": 8}}}, r"options of model 'ttm': 'd_modl'"),
        ({"source_options": {"simulated": {"dayz": 3}}}, r"options of source 'simulated': 'dayz'"),
        ({"source_options": {"simulated": {"subjects": 2}}}, "leave nobody to train on"),
        ({"source_options": {"simulated": {"subjects": 8, "days": 1}}}, "no eligible night"),
        (
            {"pipeline": "training"},
            r"'audit' is needed.*--pipelines=nocturnal_point --tags=data_processing",
        ),
        (
            {"pipeline": "reporting"},
            r"'audit' is needed.*--pipelines=nocturnal_point --tags=data_processing",
        ),
        (
            {"splits": {"hold_out": "simulated/sim-01"}},
            r"splits.hold_out.*Did you mean 'simulated/",
        ),
        (
            {"splits": {"source_shares": {"azt1d": 0.5}}},
            r"splits.source_shares 'azt1d'; known: sim",
        ),
        ({"splits": {"hold_out": "simulated"}}, "nobody is left to train on"),
        ({"cohort": {"exclude": "simulated/sim-01"}}, r"cohort.exclude .*Did you mean 'simulated/"),
        ({"source_options": {"gluroo": {"url": "postgresql://a:b@c/d"}}}, "'url' is a secret"),
        ({"source_options": {"simulatd": {}}}, r"unknown source 'simulatd'.*'simulated'"),
        ({"cluster": {"kind": "slrm"}}, r"parameter 'cluster': 'kind'.*'embedded', 'local' or"),
    ],
)
def test_bad_input_is_one_clear_error(given: dict, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message) as raised:
        run(tmp_path, **given)
    errors = [raised.value]
    while errors[-1].__cause__:
        errors.append(errors[-1].__cause__)
    assert any(isinstance(error, InputError) for error in errors)
    assert not list(tmp_path.rglob("*leaderboard*"))
