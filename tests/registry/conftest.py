"""Runs of invented errors: folders as a finished run leaves them, without a training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nocturnal_kedro.metrics.calibration import Spread
from nocturnal_kedro.metrics.overview import COLUMNS
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.run_folder import RUNS, Model, Run, write_run_folder
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.registry.tracking import Tracking, send_all
from nocturnal_kedro.training.artifact import Artifact, save_artifact
from tests.conftest import SCALER

Invent = Callable[..., Path]


def invent_artifact(name: str, key: str, weight: float = 0.5, data: str = "d" * 64) -> Artifact:
    return Artifact(
        name=name,
        kind="model",
        options={"strategy": "from_scratch", "network": {"d_model": 16}},
        architecture={},
        base=None,
        scaler=SCALER,
        people=("invented/p0", "invented/p1"),
        state={"weight": np.full(3, weight, np.float32)},
        spread=Spread.none(96),
        record={"key": key, "data": data, "training": {"seed": 7}, "train_seconds": 36.0},
        log=pd.DataFrame({"epoch": [1, 2], "train_loss": [0.9, 0.4]}),
    )


def invent_people(errors: dict[str, list[float]], data: str, version: str) -> pd.DataFrame:
    """One row per person of validation and of the later days: errors in mg/dL by model."""
    rows = [
        dict.fromkeys(COLUMNS, "") | {
            "experiment": "nocturnal_point", "model": model, "seed": 7, "data": data,
            "version": version, "split": split, "source": "invented", "subject": f"p{person}",
            "nights": 5, "points": 480, "scored_on": 1000 + person, "rmse_mg_dl": error + later,
            "mae_mg_dl": error - 4, "crps_mg_dl": error / 2,
        }
        for model, of_people in errors.items()
        for split, later in (("validation", 0.0), ("temporal", 10.0))
        for person, error in enumerate(of_people)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture
def invent(tmp_path: Path) -> Invent:
    """A run folder below `tmp_path`: errors on validation by model; see `invent_people`."""

    def make(
        errors: dict[str, list[float]],
        day: int = 1,
        data: str = "d" * 64,
        experiment: str = "nocturnal_point",
        **more: Any,
    ) -> Path:
        version = f"2026-03-{day:02d}T08.00.00.000Z"
        models = {}
        for number, name in enumerate(errors):
            key = f"{day:010d}{number:010d}"
            artifact = invent_artifact(name, key, weight=day + number, data=data)
            place = f"06_models/{experiment}/{name}/{version}/{name}"
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            if not (tmp_path / place).exists():
                save_artifact(artifact, tmp_path / place)
            models[name] = Model(
                name, "model", 7, place, artifact.options, artifact.record, 2, (key,)
            )
        record = {
            "run_id": version, "started": f"2026-03-{day:02d}T09:00:00+01:00", "seconds": 2.5,
            "command": f"kedro run --pipelines={experiment}", "environment": "local",
            "git": {"commit": "c" * 40, "dirty": False}, "versions": {"python": "3.11"},
            "hardware": {"cores": 2},
        }  # fmt: skip
        people = invent_people(errors, data, version)
        summary = [
            {"model": name, "split": "temporal", "rmse_mg_dl": float(np.mean(e)) + 10, "wql": 0.2}
            for name, e in errors.items()
        ]
        run = Run(
            experiment=experiment,
            sweep=False,
            models=models,
            selected=tuple(errors),
            parameters={"comparison": {"resamples": 400}, "training": {"epochs": 2}, "seeds": []},
            stages={"reporting": record},
            datasets={f"{experiment}.{name}.model": version for name in errors}
            | {f"{experiment}.leaderboard": version},
            made_from={"part": {"source": "invented", "files": {"invented/p.csv": "a" * 64}}},
            data=data,
            summary=pd.DataFrame(summary),
            people=people,
            figures={},
            report="<html></html>",
            logs={name: invent_artifact(name, "").log for name in errors},
            log="08:00 a line\n",
        )  # fmt: skip
        return write_run_folder(run, tmp_path / RUNS)

    return make


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store that was just made, which takes longer than a test."""
    folder = tmp_path_factory.mktemp("store")
    Registry(default_uri(folder)).find_models()
    return folder / "mlflow.db"


@pytest.fixture
def registry(tmp_path: Path, empty_store: Path) -> Registry:
    """That of the store below `tmp_path`."""
    shutil.copy(empty_store, tmp_path)
    return Registry(default_uri(tmp_path))


@pytest.fixture
def send(tmp_path: Path) -> Callable[[], str]:
    """Send what waits below `tmp_path` to its own store."""
    return lambda: send_all(tmp_path, Tracking())
