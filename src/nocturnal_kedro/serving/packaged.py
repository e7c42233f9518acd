"""An artifact as an MLflow python_function: a folder that forecasts where the project is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import nocturnal_kedro
from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.metrics.cards import DISCLAIMER
from nocturnal_kedro.metrics.forecasts import QUANTILES
from nocturnal_kedro.series.schema import BASAL_RECORD_MINUTES, SLOT, STEPS_PER_DAY, STEPS_PER_HOUR
from nocturnal_kedro.serving.readings import Reading, Recent
from nocturnal_kedro.serving.tonight import Served, forecast_tonight, make_ready, read_about

if TYPE_CHECKING:
    from nocturnal_kedro.training.artifact import Artifact

ARTIFACT = "artifact"  # its folder's name within the model's
KEY = ["person", "origin", "unit"]  # of one night: the same in all its rows
TOLD = [name for name in Reading.model_fields if name != "time"]


def write_pyfunc(artifact_folder: Path, to: Path) -> None:
    """Write a model folder that `mlflow.pyfunc.load_model` loads in a clean environment.

    In it are the artifact, whole (what it takes from a base is put in), the project's code, pins of
    every package that a forecast loads, signature and example; nothing is a pickle. Raises
    `InputError` where MLflow is absent, `to` is there already, or the artifact cannot be served.
    """
    if find_spec("mlflow") is None:
        raise InputError(
            "an MLflow model needs mlflow-skinny, which is not installed: "
            'pip install "nocturnal-kedro[registry]".'
        )
    if to.exists():
        raise InputError(f"'{to}' is there already. Give another folder, or delete it.")
    import mlflow

    from nocturnal_kedro.training.artifact import load_artifact, save_artifact

    artifact = load_artifact(artifact_folder)
    served = make_ready(artifact, read_about(artifact_folder, artifact.name, ""))
    example = example_frame(served)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / ARTIFACT
        whole = _whole(artifact)
        if whole is artifact:
            shutil.copytree(artifact_folder, folder)
        else:
            save_artifact(whole, folder)
        fresh = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            fresh,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={ARTIFACT: str(folder)},
            code_paths=[str(Path(nocturnal_kedro.__file__).parent)],
            pip_requirements=requirements(folder, example),
            signature=_signature(),
            input_example=example,
            metadata={"disclaimer": DISCLAIMER, "artifact": artifact.name},
        )
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(to.name + ".saving")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(fresh, beside)  # which may be on another disk
        beside.rename(to)


def forecast_frame(served: Served, frame: pd.DataFrame) -> pd.DataFrame:
    """Every person's night: person, origin, minutes, forecast_mg_dl, q0.01 ... q0.99, and on each
    row P(low tonight) of both levels.

    `frame` has a row per moment: person (text), origin and unit (the same in all rows of a night),
    time, and what of glucose, bolus_u and the other fields of `readings.Reading` is known. In a
    table of numbers a sensor's LOW is 39 mg/dL and its HIGH 401.
    """
    lacking = [name for name in (*KEY, "time", "glucose") if name not in frame]
    unknown = [str(name) for name in frame if name not in (*KEY, "time", *TOLD)]
    if lacking or unknown:
        raise InputError(
            f"readings lack {', '.join(lacking) or 'nothing'} and have the unknown "
            f"{', '.join(unknown) or 'nothing'}. Columns: {', '.join((*KEY, 'time', *TOLD))}."
        )
    nights = []
    for (person, origin, unit), rows in frame.groupby(KEY, sort=False, dropna=False):
        asked = {"origin": origin, "unit": unit, "readings": _rows(rows)}
        tonight = forecast_tonight(served, validated(Recent, asked, f"person '{person}'"))
        columns: dict[str, Any] = {
            "person": person,
            "origin": tonight.origin,
            "minutes": np.array(tonight.minutes, float),
            "forecast_mg_dl": tonight.forecast_mg_dl,
        }
        levels_HQ = np.array(tonight.quantiles_mg_dl)
        columns |= dict(zip(QUANTILES, levels_HQ.T, strict=True))
        columns["low_probability"] = tonight.low_probability
        columns["very_low_probability"] = tonight.very_low_probability
        nights.append(pd.DataFrame(columns))
    if not nights:
        raise InputError("readings hold no row. Give those of one person at least.")
    return pd.concat(nights, ignore_index=True)


def example_frame(served: Served) -> pd.DataFrame:
    """Somebody invented: three days of waves, meals and boluses, up to a midnight."""
    slots = 3 * STEPS_PER_DAY
    origin = pd.Timestamp("2026-01-08")
    hour = np.arange(1, slots + 1) / STEPS_PER_HOUR
    meal = np.isin(np.arange(1, slots + 1) % STEPS_PER_DAY, (90, 150, 228))
    return pd.DataFrame(
        {
            "person": "somebody",
            "origin": origin.isoformat(),
            "unit": "mg/dL",
            "time": [(origin - n * SLOT).isoformat() for n in range(slots)][::-1],
            "glucose": np.round(140 + 40 * np.sin(hour / 3.8) + 15 * np.sin(hour), 0),
            "bolus_u": np.where(meal, 5.0, np.nan),
            "basal_u_h": 0.8,
            "basal_minutes": BASAL_RECORD_MINUTES,
            "carbs_g": np.where(meal, 50.0, np.nan),
        }
    )


def requirements(artifact_folder: Path, example: pd.DataFrame) -> list[str]:
    """Pins of MLflow and of every package that is loaded by a process that forecasts the example.

    What a model needs is so known without a list that somebody would have to keep.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        example.to_json(file.name, orient="columns")
        command = [sys.executable, "-m", f"{__package__}.loaded", str(artifact_folder), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"'{artifact_folder}' cannot forecast by itself: {done.stderr[-2000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def _rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What is known of each moment; a column of text and numbers holds both."""
    told = [name for name in ("time", *TOLD) if name in rows]
    return [
        {name: value for name, value in row.items() if not pd.isna(value)}
        for row in rows[told].to_dict("records")
    ]


def _whole(artifact: Artifact) -> Artifact:
    """The artifact with every weight in it; itself where nothing is taken from elsewhere."""
    if artifact.kind == "baseline" or artifact.base is None:
        return artifact
    from nocturnal_kedro.series.origins import Task
    from nocturnal_kedro.training.start import merge, restore_model

    module = restore_model(artifact, Task.model_validate(artifact.record["task"]))
    merge(module)
    state = {name: weight.numpy() for name, weight in module.state_dict().items()}
    options = dict(artifact.options)
    if options.get("lora"):
        options["lora"] = options["lora"] | {"merge": True}
    if set(state) == set(artifact.state) and options == artifact.options:
        return artifact
    return replace(artifact, state=state, options=options)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    def columns(kind: str, *names: str) -> list[Any]:
        return [ColSpec(kind, name) for name in names]

    known = [ColSpec("double", name, required=name == "glucose") for name in TOLD]
    points = ("minutes", "forecast_mg_dl", *QUANTILES, "low_probability", "very_low_probability")
    return ModelSignature(
        Schema(columns("string", *KEY, "time") + known),
        Schema(columns("string", "person", "origin") + columns("double", *points)),
    )
