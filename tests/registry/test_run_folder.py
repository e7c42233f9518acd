"""A run leaves a folder that tells all of it to somebody who was not there."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.framework.context import KedroContext
from omegaconf import OmegaConf

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.run_folder import RUNS, read_metadata, run_folders, trace
from tests.registry.conftest import Invent


@pytest.fixture(scope="module")
def folder(finished: tuple[Path, KedroContext]) -> Path:
    """That of the finished run."""
    return run_folders(finished[0] / RUNS)[0]


def test_a_run_leaves_exactly_what_it_says(folder: Path) -> None:
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    figures = {file for file in files if file.startswith("results/figures/")}
    assert files - figures == {
        "experiment_config.yaml", "metadata.json", "report.html", "results/metrics_summary.json",
        "results/detailed_results.csv", "logs/run.log", "logs/ttm.csv", "logs/chronos2.csv",
    }  # fmt: skip
    assert "results/figures/plotly.min.js" in figures
    assert {"results/figures/01-error-with-its-uncertainty.html"} < figures
    assert folder.name.startswith("nocturnal_point_ttm+chronos2_20")
    assert "parts are unchanged" in (folder / "logs/run.log").read_text()


def test_the_numbers_are_those_of_the_leaderboard(
    folder: Path, finished: tuple[Path, KedroContext]
) -> None:
    board = finished[1].catalog.load("nocturnal_point.leaderboard")
    told = pd.read_json(folder / "results/metrics_summary.json", precise_float=True)
    pd.testing.assert_frame_equal(told[list(board)], board, check_dtype=False, rtol=1e-12)
    people = pd.read_csv(folder / "results/detailed_results.csv")
    assert set(people["split"]) == {"validation", "patient", "temporal"}
    means = people.groupby(["split", "model"])["rmse_mg_dl"].mean()
    for row in board.itertuples():
        assert means[row.split, row.model] == pytest.approx(row.rmse_mg_dl, rel=1e-9)


def test_the_parameters_are_whole_and_can_be_given_again(
    folder: Path, finished: tuple[Path, KedroContext]
) -> None:
    told = OmegaConf.to_container(OmegaConf.load(folder / "experiment_config.yaml"))
    parameters = told["parameters"]
    assert parameters["training"]["steps_per_epoch"] == 5  # as given
    assert parameters["training"]["weight_decay"] == 0.01  # as the default stands in the class
    assert parameters["sources"] == ["simulated"]
    assert set(finished[1].params) <= set(parameters)


def test_the_metadata_tell_where_it_comes_from(folder: Path) -> None:
    told = read_metadata(folder)
    assert told["models"]["ttm"]["kind"] == "model"
    assert told["models"]["last_value"]["kind"] == "baseline"
    assert len(told["data"]) == 64
    assert {part["source"] for part in told["made_from"].values()} == {"simulated"}
    assert told["git"]["commit"] is None or len(told["git"]["commit"]) == 40
    assert "learnt_from" not in told["models"]["ttm"]["record"]  # people's days stay at home


class Outside(HTMLParser):
    """What a page would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v for n, v in attrs if n in ("src", "href") and v and "//" in v]


def test_figures_open_without_a_network(folder: Path) -> None:
    pages = sorted((folder / "results/figures").glob("*.html"))
    assert len(pages) > 5
    for page in pages:
        reader = Outside()
        reader.feed(page.read_text())
        assert reader.found == []
        assert page.stat().st_size < 3_000_000  # plotly.min.js is not in each of them


def test_it_can_be_moved_and_read_elsewhere(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "sent"), "zip", folder)
    shutil.unpack_archive(archive, tmp_path / "received")
    assert read_metadata(tmp_path / "received") == read_metadata(folder)


def test_a_row_of_the_leaderboard_is_traced_to_raw_files(
    finished: tuple[Path, KedroContext], folder: Path
) -> None:
    [table] = finished[0].glob("08_reporting/nocturnal_point/leaderboard.csv/*/leaderboard.csv")
    told = trace(table, "ttm", finished[0])
    assert told == trace(folder, "ttm", finished[0])
    assert (Path(told["artifact"]) / "weights.safetensors").exists()
    assert told["fitted_to"] == told["data"]
    with pytest.raises(InputError, match=r"unknown model .* 'tmt'.*Did you mean 'ttm'"):
        trace(table, "tmt", finished[0])
    with pytest.raises(InputError, match="neither a run folder nor a table of a run"):
        trace(Path(__file__), "ttm", finished[0])


def test_a_table_is_that_of_its_own_experiment(invent: Invent, tmp_path: Path) -> None:
    """Two experiments of one run have one version."""
    folders = [invent({"ttm": [20.0]}, experiment=name) for name in ("nocturnal_point", "prandial")]
    for folder, experiment in zip(folders, ("nocturnal_point", "prandial"), strict=True):
        version = "2026-03-01T08.00.00.000Z"
        table = tmp_path / f"08_reporting/{experiment}/leaderboard.csv/{version}/leaderboard.csv"
        assert trace(table, "ttm", tmp_path)["folder"] == str(folder)


def test_raw_files_are_told_by_their_hashes(invent: Invent, tmp_path: Path) -> None:
    folder = invent({"ttm": [20.0, 21]})
    assert trace(folder, "ttm", tmp_path)["raw_files"] == {"invented/p.csv": "a" * 64}


def test_runs_of_the_same_second_do_not_overwrite_each_other(
    invent: Invent, tmp_path: Path
) -> None:
    first, second = (invent({"ttm": [error]}) for error in (20.0, 30.0))
    assert second.name == f"{first.name}-2"
    values = [
        pd.read_csv(f / "results/detailed_results.csv")["mae_mg_dl"][0] for f in (first, second)
    ]
    assert values == [16, 26]
    assert run_folders(tmp_path / RUNS) == [first, second]


def test_many_models_have_a_short_name(invent: Invent) -> None:
    folder = invent({f"model{number}": [20.0] for number in range(9)})
    assert "model0+model1+model2+model3+5-more" in folder.name


@pytest.mark.parametrize("damage", ["{", json.dumps({"format": 99}), json.dumps([])])
def test_a_damaged_folder_is_one_error(invent: Invent, damage: str) -> None:
    folder = invent({"ttm": [20.0]})
    (folder / "metadata.json").write_text(damage)
    with pytest.raises(InputError, match=r"no folder of a run|was written in form 99"):
        read_metadata(folder)


def test_what_is_missing_is_null(finished: tuple[Path, KedroContext], folder: Path) -> None:
    rows = json.loads((folder / "results/metrics_summary.json").read_text())
    board = finished[1].catalog.load("nocturnal_point.leaderboard")
    missing = int(np.sum(board.isna().to_numpy()))
    assert sum(value is None for row in rows for value in row.values()) == missing
