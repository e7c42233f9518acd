"""`kedro serve` finds what it is to serve, listens here alone, and says what it cannot do."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nocturnal_kedro.serving.command import find_model, serve
from nocturnal_kedro.serving.tonight import About
from nocturnal_kedro.training.artifact import SUMS, Artifact, save_artifact, sha256
from tests.serving.conftest import Cohort, ask


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What uvicorn would have been started with; that it does is benchmarks/serving.py's."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **how: given.update(how, app=app))
    return given


def test_a_folder_is_served_on_this_machine_alone(
    ttm: Artifact, about: About, cohort: Cohort, started: dict[str, Any], tmp_path: Path
) -> None:
    save_artifact(ttm, tmp_path / "ttm")
    about.lows.to_parquet(tmp_path / "lows.parquet")
    about.outcomes.to_parquet(tmp_path / "outcomes.parquet")
    beside = [f"--{name}={tmp_path / name}.parquet" for name in ("lows", "outcomes")]
    done = CliRunner().invoke(serve, [f"--artifact={tmp_path / 'ttm'}", *beside])
    assert done.exit_code == 0, done.output
    assert (started["host"], started["port"], started["access_log"]) == ("127.0.0.1", 8000, False)
    app = started["app"]
    assert isinstance(app, FastAPI)
    client = TestClient(app)
    assert client.get("/version").json()["fingerprint"] == sha256(tmp_path / "ttm" / SUMS)
    told = client.post("/forecast", json=ask(cohort, cohort.night(), days=1.3)).json()
    assert told["card"]["low"]["reliability"]["validation_nights"] > 5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "name one model"),
        (["a/1", "--artifact=."], "name one model"),
        (["--artifact=."], "has no readable SHA256SUMS"),
        (["--artifact=nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    given: list[str], words: str, started: dict[str, Any], tmp_path: Path
) -> None:
    done = CliRunner().invoke(serve, [*given, f"--data-root={tmp_path}"])
    assert done.exit_code != 0
    assert words in done.output
    assert "Traceback" not in done.output
    assert not started


@pytest.mark.parametrize("own", [False, True])
def test_a_card_leans_on_the_lane_of_its_own_seed_alone(
    own: bool, ttm: Artifact, about: About, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nocturnal_kedro.registry.models import Registry

    save_artifact(ttm, tmp_path / "ttm")
    outcomes = "e.outcomes" if own else "outcomes"
    told: dict[str, Any] = {
        "id": "e/1",
        "seed": "4",
        "datasets": {"e.ttm.lows": "V1", outcomes: "V3"},
        "stages": {"data_processing": "another", "training": "when"},
    }

    def save(frame: pd.DataFrame, file: str, version: str) -> None:
        folder = tmp_path / file / version
        folder.mkdir(parents=True)
        frame.to_parquet(folder / folder.parent.name)

    save(about.lows.assign(low_probability=0.25), "07_model_output/e/ttm_lows.parquet", "V1")
    save(about.outcomes, f"05_model_input/{'e/' if own else ''}outcomes.parquet", "V3")
    # By the alias it is another model: it was moved after it was traced.
    folders = {"e/1": tmp_path / "ttm", "e@champion": tmp_path / "another"}
    monkeypatch.setattr(Registry, "trace", lambda *_: told)
    monkeypatch.setattr(Registry, "folder_of", lambda _, model_id: folders[model_id])

    def found() -> About:
        return find_model("e@champion", None, None, tmp_path)[1]

    assert found().lows.empty  # no lane is known
    told["lane"] = "ttm-4"
    assert found().lows.empty  # those of the first seed alone are known
    told["datasets"]["e.ttm-4.lows"] = "V2"
    assert found().lows.empty  # its file is gone
    save(about.lows.assign(low_probability=0.5), "07_model_output/e/ttm-4_lows.parquet", "V2")
    assert set(found().lows["low_probability"]) == {0.5}
    assert len(found().outcomes) == len(about.outcomes)
    told["lane"] = "ttm"
    assert set(found().lows["low_probability"]) == {0.25}
    del told["datasets"][outcomes]
    assert found().lows.empty


@pytest.mark.slow
def test_a_registered_model_is_served_by_its_id(
    ttm: Artifact, started: dict[str, Any], tmp_path: Path
) -> None:
    from nocturnal_kedro.registry.models import Registry
    from nocturnal_kedro.registry.store import default_uri

    save_artifact(ttm, tmp_path / "ttm")
    place = f"--data-root={tmp_path}"
    Registry(default_uri(tmp_path)).register_model(tmp_path / "ttm", "nocturnal_point")
    done = CliRunner().invoke(serve, ["nocturnal_point/1", place])
    assert done.exit_code == 0, done.output
    version = TestClient(started["app"]).get("/version").json()
    assert version["model_id"] == "nocturnal_point/1"
    assert version["fingerprint"] == sha256(tmp_path / "ttm" / SUMS)
    for unknown in ("nocturnal_point/2", "nocturnal_pint/1", "nocturnal_point@champion"):
        done = CliRunner().invoke(serve, [unknown, place])
        assert done.exit_code == 1
        assert "nocturnal_point" in done.output
        assert "Traceback" not in done.output
