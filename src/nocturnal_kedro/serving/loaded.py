"""Prints pins of the packages that a forecast loads: `python -m ... FOLDER EXAMPLE`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pandas as pd

from nocturnal_kedro.serving.packaged import forecast_frame
from nocturnal_kedro.serving.tonight import make_ready, read_about
from nocturnal_kedro.training.artifact import load_artifact

OWN = "nocturnal-kedro"  # goes along as code
ALWAYS = ("mlflow-skinny",)  # which loads the model


def main(folder: Path, example: Path) -> None:
    """Forecast the example, then tell what was needed for it."""
    artifact = load_artifact(folder)
    served = make_ready(artifact, read_about(folder, artifact.name, ""))
    forecast_frame(served, pd.read_json(example, convert_dates=False))
    of_module = packages_distributions()
    loaded = {name.split(".")[0] for name in sys.modules}
    needed = {package for name in loaded for package in of_module.get(name, ())}
    needed |= set(ALWAYS)
    # "2.13.0+cpu" is a build of 2.13.0 that not every index has.
    pins = {f"{name}=={version(name).split('+')[0]}" for name in needed if name != OWN}
    print(json.dumps(sorted(pins, key=str.lower)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
