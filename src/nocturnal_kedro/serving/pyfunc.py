"""What MLflow runs to load a packaged model: models from code, with no pickle.

MLflow alone imports this file, from the folder that `packaged.write_pyfunc` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from nocturnal_kedro.serving.packaged import ARTIFACT, forecast_frame
from nocturnal_kedro.serving.tonight import make_ready, read_about
from nocturnal_kedro.training.artifact import load_artifact


class Nights(PythonModel):
    """Readings of people in, one row per person and step out; see `packaged.forecast_frame`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifact, whose hashes must be those it was written with."""
        folder = Path(context.artifacts[ARTIFACT])
        artifact = load_artifact(folder)
        self.served = make_ready(artifact, read_about(folder, artifact.name, ""))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """The nights ahead."""
        return forecast_frame(self.served, model_input)


mlflow.models.set_model(Nights())
