"""The pipeline tuning, from its parameters to the run that takes the winner."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kedro.framework.context import KedroContext

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.pipelines.tuning import nodes
from tests.conftest import PROJECT, SMALL, Run

KEDRO = str(Path(sys.executable).parent / "kedro")
SEARCH = {"experiment": "nocturnal_point", "model": "ttm", "trials": 3}


@pytest.fixture(scope="module")
def searched(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KedroContext]:
    """Data of other splits than the usual, and a search on them that does not say so."""
    data_root = tmp_path_factory.mktemp("searched")
    run(data_root, pipeline="data_processing", splits={"seed": 3})
    return data_root, run(data_root, pipeline="tuning", **SEARCH)


def winner_of(context: KedroContext) -> Path:
    dataset: Any = context.catalog["nocturnal_point.ttm.winner"]
    return Path(dataset._get_load_path())


@pytest.mark.slow
def test_the_trials_are_a_table_and_the_winner_is_a_file(
    searched: tuple[Path, KedroContext],
) -> None:
    trials = searched[1].catalog.load("nocturnal_point.ttm.trials")
    assert trials["trial"].tolist() == [1, 2, 3]
    assert {"state", "validation_rmse", "seconds", "learning_rate", "network.d_model"} <= set(
        trials
    )
    best = trials.loc[trials["validation_rmse"].idxmin()]
    told = yaml.safe_load(winner_of(searched[1]).read_text())["run"]
    assert told["pipelines"] == "nocturnal_point"
    options = told["params"]["model_options"]["ttm"]
    assert options["preset"] == "tiny"
    assert options["learning_rate"] == pytest.approx(best["learning_rate"])
    assert options["network"]["d_model"] == best["network.d_model"]
    assert told["params"]["models"] == ["ttm"]
    assert told["params"]["training"]["steps_per_epoch"] == SMALL["training"]["steps_per_epoch"]
    assert told["params"]["splits"]["seed"] == 3  # of the data that validation is of
    assert not set(told["params"]) & {*SEARCH, "tuning", "hardware"}


@pytest.mark.slow
def test_the_record_says_how_the_search_was_made(searched: tuple[Path, KedroContext]) -> None:
    stages = json.loads((searched[0] / "08_reporting" / "run_record.json").read_text())["stages"]
    assert list(stages) == ["data_processing", "tuning"]
    assert stages["tuning"]["parameters"]["trials"] == 3


@pytest.mark.slow
def test_the_next_run_takes_the_winner(searched: tuple[Path, KedroContext]) -> None:
    context = searched[1]
    winner = winner_of(context)
    refused = kedro(f"--config={winner}", "--params=models=chronos2")
    assert refused.returncode == 1
    assert "--params would replace all the parameters in the file of --config" in refused.stderr
    ran = kedro(
        f"--config={winner}", "--pipelines=training", "--namespaces=nocturnal_point.ttm"
    )  # without what follows: the file says the whole experiment
    assert ran.returncode == 0, ran.stderr
    fitted = context.catalog.load("nocturnal_point.ttm.model")
    given = yaml.safe_load(winner.read_text())["run"]["params"]["model_options"]["ttm"]
    assert fitted.options["learning_rate"] == given["learning_rate"]
    assert given["network"].items() <= fitted.options["network"].items()
    # It is the training of the trial, on the same data.
    trials = context.catalog.load("nocturnal_point.ttm.trials")
    assert fitted.log["validation_rmse"].min() == pytest.approx(
        trials["validation_rmse"].min(), abs=1e-12
    )


def test_the_winner_is_for_the_data_that_was_searched() -> None:
    stages = {
        "data_processing": {"parameters": {"sources": ["azt1d"], "data_root": "there"}},
        "tuning": {
            "parameters": {
                "sources": ["simulated"], "data_root": "here", "trials": 3, "hardware": {},
                "model_options": {"ttm": {"preset": "tiny"}, "tide": {"preset": "tiny"}},
            }
        },
    }  # fmt: skip
    best = {"model_options": {"ttm": {"learning_rate": 0.1}}}
    told = nodes._next_run({"stages": stages}, best, "nocturnal_point", "ttm")
    assert told["run"]["params"] == {
        "sources": ["azt1d"],
        "data_root": "here",
        "models": ["ttm"],
        "model_options": {
            "ttm": {"preset": "tiny", "learning_rate": 0.1},
            "tide": {"preset": "tiny"},
        },
    }
    assert stages["tuning"]["parameters"]["model_options"]["ttm"] == {"preset": "tiny"}


@pytest.mark.slow
def test_the_same_command_goes_on_and_says_what_to_type_next(
    searched: tuple[Path, KedroContext],
) -> None:
    data_root, context = searched
    before = context.catalog.load("nocturnal_point.ttm.trials")
    given = [f"data_root={data_root}", "source_options.simulated.subjects=8",
             "training.epochs=2", "training.steps_per_epoch=5", "model_options.ttm.preset=tiny",
             "experiment=nocturnal_point", "model=ttm", "trials=4"]  # fmt: skip
    done = kedro("--pipeline=tuning", f"--params={','.join(given)}")
    assert done.returncode == 0, done.stderr
    assert "trial 4, of 4" in done.stdout + done.stderr
    assert "trial 3, of 4" not in done.stdout + done.stderr
    assert "4 trials: 4 complete; validation RMSE in scaled units: " in done.stdout
    file = done.stdout.split("The winner is taken by: kedro run --config=")[1].split()[0]
    assert yaml.safe_load(Path(file).read_text())["run"]["params"]["splits"]["seed"] == 3
    table = next(line for line in done.stdout.splitlines() if line.startswith("Trials: "))
    rows = Path(table.removeprefix("Trials: ")).read_text().splitlines()
    assert len(rows) == 5
    assert str(before["validation_rmse"][0])[:8] in rows[1]


def kedro(*arguments: str) -> subprocess.CompletedProcess[str]:
    # As many threads as here: sums over another number of them round otherwise.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(
        [KEDRO, "run", *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"experiment": "nocturnal_pint"},
            r"unknown experiment .*Did you mean 'nocturnal_point'\?",
        ),
        ({"model": "ttn"}, r"unknown model 'ttn'.*Did you mean 'ttm'\?"),
        ({"model": None}, "unknown model 'None'"),
        ({"model": "last_value"}, "'last_value' is a baseline, which is fitted in one go"),
        ({"model": "timegpt"}, "'timegpt' is a service"),
        ({"trials": "abc"}, "'trials' is 'abc'"),
        ({"trails": 3}, r"unknown parameter 'trails'.*Did you mean 'trials'\?"),
        ({"tuning": {"spac": {}}}, r"parameter 'tuning': 'spac'.*Allowed: space, prune_after"),
        ({"tuning": {"space": {"network": {"dropou": [0.1]}}}}, "Did you mean 'network.dropout'"),
        ({"hardware": {"processes": 2}}, "each trial is trained by one"),
        ({}, r"'audit' is needed.*--pipelines=nocturnal_point --tags=data_processing"),
    ],
)
def test_what_no_search_could_use_is_one_clear_error(
    given: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, pipeline="tuning", **given)
    assert not list(tmp_path.rglob("searches"))
