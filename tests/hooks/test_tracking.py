"""A run ends with its folder and its entry in the store, and commands find it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.framework.context import KedroContext
from kedro.runner import ParallelRunner, ThreadRunner
from omegaconf import OmegaConf

from nocturnal_kedro.cli import cli
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.run_folder import RUNS, read_metadata, run_folders
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.registry.tracking import Tracking, send_all
from tests.conftest import PROJECT, SMALL, Run


@pytest.mark.slow
@pytest.mark.parametrize("runner", [ThreadRunner, ParallelRunner])
def test_every_runner_leaves_the_same(
    runner: type,
    run: Run,
    finished_copy: Path,
    finished: tuple[Path, KedroContext],
    capsys: pytest.CaptureFixture[str],
) -> None:
    nobody = {"send": True, "uri": "http://127.0.0.1:9"}  # answers: the run ends well anyway
    run(finished_copy, tags=["reporting"], runner=runner(), tracking=nobody)
    assert "2 run folders wait" in capsys.readouterr().out
    send_all(finished_copy, Tracking())
    first, second = run_folders(finished_copy / RUNS)
    for file in ("results/metrics_summary.json", "results/detailed_results.csv"):
        assert (first / file).read_text() == (second / file).read_text()
    found = Registry(default_uri(finished_copy)).find_models()
    assert sorted(found["model"]) == sorted(
        finished[1].catalog.load("nocturnal_point.leaderboard")["model"].unique()
    )


@pytest.mark.slow
def test_scores_stay_those_of_the_model_that_made_them(run: Run, finished_copy: Path) -> None:
    """A model that was trained since is not told of as theirs."""
    run(finished_copy, tags=["training"], training=SMALL["training"] | {"epochs": 1})
    run(finished_copy, tags=["reporting"])
    first, second = map(read_metadata, run_folders(finished_copy / RUNS))
    for lane, model in first["models"].items():
        assert second["models"][lane]["keys"] == model["keys"], lane
    assert second["models"]["ttm"]["artifact"] == first["models"]["ttm"]["artifact"]
    # Nor is the stage that trained it, and parameters are those of what is told.
    assert "training" not in second["stages"]
    assert second["made_from"] == first["made_from"]
    told = OmegaConf.load(run_folders(finished_copy / RUNS)[1] / "experiment_config.yaml")
    assert told.parameters.sources == ["simulated"]
    for model in finished_copy.glob("06_models/*/ttm/*"):
        if model.name == first["run_id"]:
            shutil.rmtree(model)
    shutil.rmtree(finished_copy / "06_models/trained")
    with pytest.raises(InputError, match="are of a model that is not there any more"):
        run(finished_copy, tags=["reporting"])


@pytest.mark.slow
def test_a_full_disk_is_told_and_loses_no_result(run: Run, finished_copy: Path) -> None:
    """A file where the folder of runs would be does what a full disk does."""
    shutil.rmtree(finished_copy / RUNS)
    (finished_copy / RUNS).touch()
    with pytest.raises(InputError, match=r"its results are saved.*--tags=reporting"):
        run(finished_copy, tags=["reporting"])
    boards = list(finished_copy.glob("08_reporting/nocturnal_point/leaderboard.csv/*/*.csv"))
    assert len(boards) == 2


@pytest.fixture
def kedro(finished_copy: Path, project: None, monkeypatch: pytest.MonkeyPatch) -> object:
    """`kedro GROUP COMMAND ...` in the project, of a copy of the finished run."""
    monkeypatch.chdir(PROJECT)

    def give(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [*words, f"--data-root={finished_copy}"])
        return done.exit_code, done.output

    return give


@pytest.mark.slow
def test_a_model_is_found_compared_and_traced_on_the_command_line(
    kedro: object, finished_copy: Path, tmp_path: Path
) -> None:
    assert "Tracking store: sqlite" in kedro("runs", "send")[1]
    code, told = kedro("models", "find", "--kind=model")
    assert code == 0
    assert "nocturnal_point/" in told
    assert "last_value" not in told
    kedro("models", "find", f"--csv={tmp_path / 'all.csv'}")
    table = pd.read_csv(tmp_path / "all.csv")
    first, second = table["id"][:2]
    assert f"{first} is the first champion" in kedro("models", "champion", first)[1]
    assert "too few people" in kedro("models", "champion", second)[1]
    traced = json.loads(kedro("models", "trace", "nocturnal_point@champion")[1])
    assert traced["id"] == first
    assert kedro("models", "compare", first, second)[0] == 0
    assert "champion" in kedro("models", "delete", first)[1]
    [board] = finished_copy.glob("08_reporting/nocturnal_point/leaderboard.csv/*/*.csv")
    row = json.loads(kedro("runs", "trace", str(board), "ttm")[1])
    assert row["data"] == table["data"][0]
    assert "would be freed" in kedro("runs", "clean")[1]


def test_mistakes_are_one_line(kedro: object) -> None:
    for told, words in {
        "'x' is not a valid float": ("models", "find", "--max-rmse=x"),
        "there is no store at sqlite": ("models", "trace", "ttm"),
        "neither a run folder nor a table": ("runs", "trace", str(PROJECT), "ttm"),
        "at least the newest run": ("runs", "clean", "--keep=0"),
    }.items():
        code, output = kedro(*words)
        assert code != 0
        assert told in output
        assert "Traceback" not in output
