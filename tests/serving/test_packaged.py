"""A packaged model forecasts where the project is not, and not at all once it is changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nocturnal_kedro
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.forecasts import QUANTILES
from nocturnal_kedro.serving.packaged import _whole, forecast_frame, write_pyfunc
from nocturnal_kedro.serving.tonight import About, Served, make_ready
from nocturnal_kedro.training.artifact import Artifact, load_artifact, save_artifact
from nocturnal_kedro.training.fit import fit_model
from tests.serving.conftest import QUICK, Cohort, ask, baseline, evaluate, of_night

# In a process that does not find the project, wherever it is installed from.
ELSEWHERE = """
import sys, importlib.util
from pathlib import Path
sys.path = [path for path in sys.path if path != sys.argv[1]]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
assert importlib.util.find_spec("nocturnal_kedro") is None
import mlflow.pyfunc, pandas as pd
frame = pd.read_json("asked.json", convert_dates=False, dtype={"person": str})
model = mlflow.pyfunc.load_model("model")
model.predict(frame).to_json("told.json", orient="records", double_precision=15)
import nocturnal_kedro
print(nocturnal_kedro.__file__)
[file] = Path("model").rglob("weights.safetensors")
changed = bytearray(file.read_bytes())
changed[-1] ^= 1
file.write_bytes(changed)
try:
    mlflow.pyfunc.load_model("model")
except Exception as error:
    print(str(error).replace("\\n", " "))
"""


def frame_of(cohort: Cohort, *nights: pd.Series) -> pd.DataFrame:
    parts = []
    for night in nights:
        asked = ask(cohort, night)
        known = {"person": night["subject"], "origin": asked["origin"], "unit": asked["unit"]}
        parts.append(pd.DataFrame(asked["readings"]).assign(**known))
    return pd.concat(parts, ignore_index=True)


def test_a_frame_of_several_people_is_told_night_by_night(served: Served, cohort: Cohort) -> None:
    nights = cohort.data.origins[cohort.data.origins["split"] == "patient"]
    first, last = cohort.night(), nights.iloc[-1]
    told = forecast_frame(served, frame_of(cohort, first, last))
    assert list(told["person"].unique()) == list(dict.fromkeys([first["subject"], last["subject"]]))
    assert len(told) == 2 * 96
    saved = of_night(evaluate(served.artifact, cohort).forecasts, last)
    np.testing.assert_allclose(told.tail(96)[list(QUANTILES)], saved[list(QUANTILES)], rtol=1e-6)
    with pytest.raises(InputError, match="lack unit, glucose and have the unknown bg"):
        forecast_frame(
            served, frame_of(cohort, first).drop(columns="unit").rename(columns={"glucose": "bg"})
        )


@pytest.mark.slow
def test_it_loads_where_the_project_is_not_and_never_changed(
    cohort: Cohort, tmp_path: Path
) -> None:
    artifact, night = baseline("climatology", cohort), cohort.night()
    save_artifact(artifact, tmp_path / "fitted")
    write_pyfunc(tmp_path / "fitted", tmp_path / "model")
    assert not [f for f in (tmp_path / "model").rglob("*") if f.suffix in (".pkl", ".pickle")]
    pins = (tmp_path / "model" / "requirements.txt").read_text()
    assert "torch==" in pins
    assert "nocturnal" not in pins
    asked = frame_of(cohort, night)
    asked.to_json(tmp_path / "asked.json")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(Path(nocturnal_kedro.__file__).parents[1])],
        cwd=tmp_path,
        env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    code, refusal = done.stdout.splitlines()[-2:]
    assert str(tmp_path) in str(Path(code).resolve())
    told = pd.DataFrame(json.loads((tmp_path / "told.json").read_text()))
    here = forecast_frame(make_ready(artifact, About("", "", "")), asked)
    np.testing.assert_allclose(told[list(QUANTILES)], here[list(QUANTILES)], rtol=1e-6)
    np.testing.assert_allclose(told["low_probability"], here["low_probability"], rtol=1e-12)
    assert "weights.safetensors' is damaged" in refusal


def test_what_is_there_already_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        write_pyfunc(tmp_path, tmp_path)


def test_what_stands_on_other_weights_is_packaged_with_them(
    ttm: Artifact, cohort: Cohort, tmp_path: Path
) -> None:
    save_artifact(ttm, tmp_path / "first")
    given = {"strategy": "fine_tune", "weights": str(tmp_path / "first"), "lora": {"rank": 2}}
    adapted = fit_model("ttm", given, cohort.data, QUICK)
    whole = _whole(adapted)
    assert len(whole.state) == len(ttm.state)
    asked = frame_of(cohort, cohort.night())
    before = forecast_frame(make_ready(adapted, About("", "", "")), asked)
    save_artifact(whole, tmp_path / "whole")
    (tmp_path / "first").rename(tmp_path / "gone")
    with pytest.raises(InputError):
        make_ready(adapted, About("", "", ""))
    alone = make_ready(load_artifact(tmp_path / "whole"), About("", "", ""))
    after = forecast_frame(alone, asked)
    np.testing.assert_allclose(after[list(QUANTILES)], before[list(QUANTILES)], rtol=1e-5)
    assert _whole(ttm) is ttm
