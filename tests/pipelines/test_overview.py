"""The pipeline overview, over what runs have saved."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.series.schema import TEST_SPLITS
from tests.conftest import PROJECT, Run

MODELS = {"ttm", "chronos2", *plugins.names("baseline")}


@pytest.mark.slow
def test_the_overview_shows_what_the_leaderboard_does_and_ranks_by_validation(
    run: Run, finished_copy: Path
) -> None:
    context = run(finished_copy, pipeline="overview")
    table = context.catalog.load("overview")
    assert set(table["source"]) == {"all", "simulated"}
    whole = table[table["source"] == "all"].set_index("model")
    assert set(whole.index) == MODELS
    assert whole["rank"].tolist() == sorted(whole["validation_rmse_mg_dl"].rank(method="min"))
    assert whole["validation_rmse_mg_dl"].is_monotonic_increasing
    board = context.catalog.load("nocturnal_point.leaderboard")
    for split in TEST_SPLITS:
        of_split = board[board["split"] == split].set_index("model").loc[whole.index]
        pairs = {
            "rmse_mg_dl": "rmse_mg_dl", "low_mg_dl": "rmse_low_mg_dl",
            "high_mg_dl": "rmse_high_mg_dl", "people": "subjects", "nights": "nights",
        }  # fmt: skip
        for own, theirs in pairs.items():
            pd.testing.assert_series_equal(
                whole[f"{split}_{own}"], of_split[theirs], check_names=False
            )
    stages = context.catalog.load("run_record")["stages"]
    assert list(stages)[-1] == "overview"
    assert "--pipelines=overview" in stages["overview"]["command"]
    assert "--pipelines=overview" not in stages["reporting"]["command"]


@pytest.mark.slow
def test_the_overview_on_the_command_line(run: Run, finished_copy: Path) -> None:
    run(finished_copy, pipeline="evaluation", models="ttm")  # a second version

    def kedro(given: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(Path(sys.executable).parent / "kedro"), "run", "--pipelines=overview",
             f"--params=data_root={finished_copy},comparison.resamples=200,{given}"],
            cwd=PROJECT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = kedro("overview.models=ttm chronos2,overview.metric=crps_mg_dl,overview.versions=all")
    assert done.returncode == 0, done.stderr
    assert "CRPS in mg/dL, ranked on" in done.stdout
    file = next(line for line in done.stdout.splitlines() if line.startswith("Overview: "))
    table = pd.read_csv(file.removeprefix("Overview: "))
    assert set(table["model"]) == {"ttm", "chronos2"}
    assert table.loc[table["model"] == "ttm", "version"].nunique() == 2
    wrong = kedro("overview.models=tmt")
    assert wrong.returncode == 1
    assert "unknown model in overview.models 'tmt'" in wrong.stderr
    assert "Did you mean 'ttm'" in wrong.stderr
    assert "Traceback" not in wrong.stderr + wrong.stdout


def test_without_a_score_it_says_what_to_run_first(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        Exception, match=r"no scores are saved in .*Run an experiment first, e\.g\."
    ):
        run(tmp_path, pipeline="overview")
