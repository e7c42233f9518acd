"""Folders of runs come to the store whole, once, and whatever happens on the way."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kedro.framework.context import KedroContext
from pydantic import ValidationError

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry import tracking
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.run_folder import RUNS, run_folders
from nocturnal_kedro.registry.store import default_uri, open_store
from nocturnal_kedro.registry.tracking import PARENT, Tracking, send_all
from nocturnal_kedro.training.artifact import load_artifact, save_artifact
from tests.conftest import PROJECT, Run
from tests.registry.conftest import Invent, invent_artifact

ERRORS = [20.0, 22, 24]


def runs_of(data_root: Path, experiment: str = "nocturnal_point") -> tuple[list, list]:
    """Runs of experiments, and those of models below them."""
    client = open_store(default_uri(data_root)).client
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    children = [run for run in found if PARENT in run.data.tags]
    return [run for run in found if PARENT not in run.data.tags], children


def test_a_finished_run_is_in_the_store_as_it_was(
    finished_copy: Path, finished: tuple[Path, KedroContext]
) -> None:
    assert send_all(finished_copy, Tracking()).startswith("Tracking store: sqlite:///")
    [parent], children = runs_of(finished_copy)
    board = finished[1].catalog.load("nocturnal_point.leaderboard")
    assert {child.info.run_name for child in children} == set(board["model"])
    assert parent.data.params["training.steps_per_epoch"] == "5"
    assert len(parent.data.tags["nocturnal.data"]) == 64
    by_name = {child.info.run_name: child.data for child in children}
    for row in board.itertuples():
        metrics = by_name[row.model].metrics
        assert metrics[f"{row.split}.rmse_mg_dl"] == pytest.approx(row.rmse_mg_dl, rel=1e-9)
        assert metrics[f"{row.split}.rmse_low_mg_dl"] == pytest.approx(row.rmse_low_mg_dl, rel=1e-9)
        assert metrics[f"{row.split}.clarke_a_pct"] == pytest.approx(row.clarke_a_pct)
    assert by_name["ttm"].params["options.preset"] == "tiny"
    assert by_name["ttm"].metrics["training_hours"] > 0
    assert by_name["ttm"].tags["nocturnal.strategy"] == "from_scratch"

    client = open_store(default_uri(finished_copy)).client
    [ttm] = [child for child in children if child.info.run_name == "ttm"]
    curve = client.get_metric_history(ttm.info.run_id, "train_loss")
    log = load_artifact(next(finished_copy.glob("06_models/nocturnal_point/ttm/*/ttm"))).log
    assert [(point.step, point.value) for point in curve] == list(
        log[["epoch", "train_loss"]].itertuples(index=False, name=None)
    )
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "results", "logs", "metadata.json", "experiment_config.yaml"} <= files


def test_kept_models_cost_no_room_beside_the_data(
    invent: Invent, send: Callable[[], str], registry: Registry
) -> None:
    invent({"ttm": ERRORS})
    send()
    weights = registry.folder_of("nocturnal_point/1") / "weights.safetensors"
    assert weights.stat().st_nlink == 2


def test_what_is_sent_twice_is_there_once(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    folder = invent({"ttm": ERRORS, "chronos2": ERRORS})
    send()
    assert "has every run" in send()
    (folder.parent / ".sent" / f"{folder.name}.json").unlink()  # as if it was never told
    send()
    parents, children = runs_of(tmp_path)
    assert (len(parents), len(children)) == (1, 2)
    assert len(registry.find_models()) == 2


@pytest.mark.parametrize("killed_after", [1, 4, 9])
def test_a_sending_that_was_cut_off_is_done_anew(
    invent: Invent,
    send: Callable[[], str],
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: int,
) -> None:
    invent({"ttm": ERRORS, "chronos2": ERRORS})
    log, calls = tracking._log_metrics, []

    def cut_off(*given: object, **told: object) -> None:
        calls.append(1)
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        log(*given, **told)

    monkeypatch.setattr(tracking, "_log_metrics", cut_off)
    if killed_after < 9:
        with pytest.raises(KeyboardInterrupt):
            send()
        assert registry.find_models().empty
    send()
    parents, children = runs_of(tmp_path)
    assert (len(parents), len(children)) == (1, 2)
    assert sorted(registry.find_models()["model"]) == ["chronos2", "ttm"]
    assert all(run.info.status == "FINISHED" for run in (*parents, *children))


def test_a_server_that_is_down_loses_nothing(
    invent: Invent,
    send: Callable[[], str],
    registry: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = invent({"ttm": ERRORS}, day=1), invent({"ttm": ERRORS}, day=2)
    told = send_all(tmp_path, Tracking(uri="http://127.0.0.1:9"))
    assert "2 run folders wait" in told
    assert "`kedro runs send`" in told
    assert "the tracking store http://127.0.0.1:9" in caplog.text
    assert run_folders(tmp_path / RUNS) == [first, second]
    send()
    assert len(runs_of(tmp_path)[0]) == 2
    told = first.parent / ".sent" / f"{first.name}.json"
    assert set(json.loads(told.read_text())) == {registry.uri}


def test_two_runs_of_one_name_are_two(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    """As of jobs with a data_root each that begin in the same second, and share a store."""
    first = invent({"ttm": ERRORS})
    send()
    first.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "06_models")
    (tmp_path / "runs/.sent" / f"{first.name}.json").unlink()
    second = invent({"ttm": ERRORS}, data="e" * 64)
    assert second.name == first.name
    send()
    assert len(runs_of(tmp_path)[0]) == 2
    assert sorted(registry.find_models()["data"]) == ["d" * 64, "e" * 64]


def test_a_model_is_not_registered_by_a_run_that_keeps_another(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    invent({"ttm": ERRORS})
    send()
    run_id = registry.find_models()["run"][0]
    save_artifact(invent_artifact("ttm", "other", weight=9), tmp_path / "other")
    with pytest.raises(InputError, match="keeps another model"):
        registry.register_model(tmp_path / "other", "nocturnal_point", run_id=run_id)


def test_a_damaged_folder_does_not_hold_up_the_others(
    invent: Invent, send: Callable[[], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, _ = invent({"ttm": ERRORS}, day=1), invent({"ttm": ERRORS}, day=2)
    (bad / "metadata.json").write_text("{")
    assert "1 of the run folders cannot be sent" in send()
    assert bad.name in caplog.text
    assert len(runs_of(tmp_path)[0]) == 1


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="uri holds a password"):
        Tracking(uri="http://me:secret@host:5000")


def test_there_is_nothing_to_send_where_nothing_was_run(tmp_path: Path) -> None:
    assert "has every run" in send_all(tmp_path, Tracking())


def test_without_mlflow_a_run_says_how_it_is_had(
    invent: Invent, send: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = invent({"ttm": ERRORS})
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    assert "nocturnal-kedro[registry]" in send()
    assert run_folders(tmp_path / RUNS) == [folder]


@pytest.mark.slow
def test_each_seed_has_its_own_errors(run: Run, tmp_path: Path) -> None:
    """Of a model with two seeds the leaderboard tells means: not those of either."""
    run(tmp_path, models="ttm", seeds="3 4", tracking={"send": True})
    _, children = runs_of(tmp_path)
    own = {child.info.run_name: child.data.metrics for child in children}
    two = own["ttm"]["temporal.rmse_mg_dl"], own["ttm-4"]["temporal.rmse_mg_dl"]
    assert two[0] != two[1]
    [table] = tmp_path.glob("08_reporting/nocturnal_point/leaderboard.csv/*/leaderboard.csv")
    board = np.genfromtxt(table, delimiter=",", names=True, dtype=None, encoding="utf-8")
    row = board[(board["model"] == "ttm") & (board["split"] == "temporal")]
    assert np.mean(two) == pytest.approx(float(row["rmse_mg_dl"][0]), rel=1e-9)
    found = Registry(default_uri(tmp_path)).find_models(model="ttm")
    assert sorted(found["seed"]) == ["3", "4"]


AGAIN = """
import sys
from pathlib import Path
import pandas as pd
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.training.forecast import forecast

project, data_root = map(Path, sys.argv[1:])
bootstrap_project(project)
registry = Registry(default_uri(data_root))
best = registry.find_models(kind="model")["id"][0]
with KedroSession.create(project, runtime_params={"data_root": str(data_root)}) as session:
    catalog = session.load_context().catalog
    data = [catalog.load(name) for name in ("corpus", "splits", "origins")]
artifact = registry.get_model(best)
saved = catalog.load(f"nocturnal_point.{artifact.name}.forecasts")
made, _ = forecast(artifact, *data)
pd.testing.assert_frame_equal(made[list(saved)], saved, check_exact=True)
print(best, artifact.name, len(saved))
"""


@pytest.mark.slow
def test_the_better_of_two_models_forecasts_in_a_fresh_process_what_was_saved(
    finished_copy: Path,
) -> None:
    send_all(finished_copy, Tracking())
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(PROJECT), str(finished_copy)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model_id, name, rows = done.stdout.split()
    found = Registry(default_uri(finished_copy)).find_models(kind="model")
    assert (found["id"][0], found["model"][0]) == (model_id, name)
    assert found["validation_rmse_mg_dl"].is_monotonic_increasing
    assert int(rows) > 1000
