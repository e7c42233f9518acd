"""What docs/extending.md tells one to write works as it stands, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import PROJECT, invent_readings

PAGE = (PROJECT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CHANGES = re.findall(r"```diff\n--- (\S+)\n(.*?)```", PAGE, re.DOTALL)
SMALL = (
    "sources=clinic,raw_root=raw,data_root=out,models=gru,model_options.gru.preset=tiny,"
    "training.epochs=1,training.steps_per_epoch=5,comparison.resamples=100,"
    "baseline_options.auto_ets.model=ANN,baseline_options.auto_ets.damped=false,"
    "baseline_options.auto_ets.context_steps=48,baseline_options.gradient_boosting.rounds=3,"
    "baseline_options.gradient_boosting.leaves=4,baseline_options.gradient_boosting.threads=1"
)


def block(mark: str) -> str:
    [found] = (text for text in BLOCKS if mark in text)
    return found


def change(folder: Path, path: str, lines: str) -> None:
    """Put each line with a plus after the one that stands before it on the page."""
    text, before = (folder / path).read_text(), ""
    for line in lines.splitlines():
        assert line[0] in " +", line
        if line[0] == "+":
            assert text.count(f"\n{before}\n") == 1, f"{path} has not once: {before}"
            text = text.replace(f"\n{before}\n", f"\n{before}\n{line[1:]}\n")
        before = line[1:]
    (folder / path).write_text(text)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with everything that the page shows."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("src", "conf", "tests"):
        kept = shutil.ignore_patterns("__pycache__", "local", "*.egg-info")
        shutil.copytree(PROJECT / name, folder / name, ignore=kept)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    (folder / "conf" / "local").mkdir()
    code = folder / "src" / "nocturnal_kedro"
    for place, mark in (
        (code / "sources" / "clinic.py", 'TITLE = "Clinic'),
        (folder / "tests" / "sources" / "test_clinic.py", "find_parts(["),
        (code / "models" / "gru.py", "class GRU"),
        (code / "baselines" / "reverting.py", "drawn back to the mean"),
        (code / "sweeps" / "low_repeats.py", "drawn more often in training"),
    ):
        place.write_text(block(mark))
    point, origins = code / "metrics" / "point.py", code / "series" / "origins.py"
    point.write_text(f"{point.read_text()}\n\n{block('def near_miss')}")
    above, below = origins.read_text().split("class Anchor(")
    origins.write_text(f"{above}{block('def _waking_rows')}\n\nclass Anchor({below}")
    for path, lines in CHANGES:
        change(folder, path, lines)
    return folder


def python_in(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def passed(project: Path, *tests: str) -> int:
    told = python_in(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    return int(re.search(r"(\d+) passed", told)[1])


@pytest.mark.slow
def test_the_tests_of_the_source_pass(project: Path) -> None:
    assert passed(project, "tests/sources/test_clinic.py") == 2


@pytest.mark.slow
def test_the_model_holds_the_contract(project: Path) -> None:
    assert passed(project, "tests/models/test_contract.py", "-k", "gru") > 10


@pytest.mark.slow
def test_the_baseline_works(project: Path) -> None:
    assert passed(project, "tests/baselines/test_baselines.py", "-k", "reverting") > 1


@pytest.fixture(scope="module")
def results(project: Path) -> Path:
    """An experiment and a sweep with all of it, on files of the clinic."""
    write_clinic(project / "raw" / "clinic")
    pipelines = "--pipelines=morning,low_repeats"
    python_in(project, "-m", "kedro", "run", pipelines, f"--params={SMALL}")
    return project / "out"


def write_clinic(folder: Path) -> None:
    """Invented readings that are low now and then, in the clinic's format, one row twice."""
    folder.mkdir(parents=True)
    for subject, own in invent_readings(people=8, days=14).frame.groupby("subject"):
        table = pd.DataFrame(
            {
                "time": own["time"].dt.strftime("%Y-%m-%d %H:%M"),
                "glucose_mmol_l": ((own["glucose_mg_dl"] - 45).clip(lower=42) / 18.0182).round(2),
                **{name: own[name].round(2) for name in ("basal_u_h", "bolus_u", "carbs_g")},
            }
        )
        table = pd.concat([table, table.tail(1)])
        table.to_csv(folder / f"{subject}.csv", index=False)


def newest(folder: Path) -> Path:
    return max(folder.glob(f"*/{folder.name}"))


@pytest.mark.slow
def test_the_source_is_read(results: Path) -> None:
    tally = pd.read_csv(newest(results / "08_reporting" / "tally.csv"))
    repeated = tally[tally["reason"] == "rows that stand twice"]
    assert set(repeated["source"]) == {"clinic"}
    assert repeated["rows"].tolist() == [1] * 8


@pytest.mark.slow
def test_the_anchor_gives_origins(results: Path) -> None:
    origins = pd.read_csv(
        newest(results / "05_model_input" / "morning" / "origins.csv"), parse_dates=["origin"]
    )
    assert set(origins["origin"].dt.strftime("%H:%M")) == {"06:00"}
    assert {"train", "validation", "patient", "temporal"} <= set(origins["split"])
    tally = pd.read_csv(newest(results / "08_reporting" / "morning" / "tally.csv"))
    assert tally.loc[tally["reason"] == "mornings kept", "rows"].sum() == len(origins)


@pytest.mark.slow
def test_the_model_the_baseline_and_the_metric_are_ranked(results: Path) -> None:
    board = pd.read_csv(newest(results / "08_reporting" / "morning" / "leaderboard.csv"))
    assert {"gru", "reverting", "last_value"} <= set(board["model"])
    row = board[(board["split"] == "patient") & (board["model"] == "gru")].iloc[0]
    forecasts = pd.read_parquet(
        newest(results / "07_model_output" / "morning" / "gru_forecasts.parquet")
    ).dropna(subset="target_mg_dl")
    origins = pd.read_csv(
        newest(results / "05_model_input" / "morning" / "origins.csv"), parse_dates=["origin"]
    )
    told = forecasts.merge(origins[origins["split"] == "patient"])
    away = (told["forecast_mg_dl"] - told["target_mg_dl"]).abs()
    near = away <= np.maximum(15, 0.15 * told["target_mg_dl"])  # the same: they meet at 100 mg/dL
    expected = 100 * near.groupby(told["subject"]).mean().mean()
    assert 0 < expected < 100
    assert row["near_miss_pct"] == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_the_sweep_compares_its_two_cells(results: Path) -> None:
    table = pd.read_csv(newest(results / "08_reporting" / "low_repeats" / "summary.csv"))
    own = table[table["model"] == "gru"].set_index(["split", "cell"])
    assert set(own.index.unique("cell")) == {"lows 1 x", "lows 3 x"}
    for split in ("patient", "temporal"):
        once, often = own.loc[split, "lows 1 x"], own.loc[split, "lows 3 x"]
        assert often["against"] == "lows 1 x"
        assert often["paired_nights"] == once["nights"] > 0
        assert often["difference_mg_dl"] == pytest.approx(often["rmse_mg_dl"] - once["rmse_mg_dl"])
        assert often["difference_mg_dl"] != 0  # lows were seen more often
    scores = pd.read_parquet(
        newest(results / "07_model_output" / "low_repeats" / "cell_scores.parquet")
    )
    assert scores["near_miss_pct"].between(0, 100).all()
    assert "reverting" in set(scores["model"])
