"""A fitted model or baseline as a versioned folder: safetensors, JSON and a CSV, no pickle."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from kedro.io import AbstractVersionedDataset, Version
from kedro.io.core import DatasetError

from nocturnal_kedro.models import Artifact

DESCRIBED = ("name", "kind", "options", "people", "record")


class ArtifactDataset(AbstractVersionedDataset[Artifact, Artifact]):
    """`filepath` is a folder of `weights.safetensors`, `artifact.json`, `training_log.csv`."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def load(self) -> Artifact:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from nocturnal_kedro.series.windows import Scaler

        folder = Path(self._get_load_path())
        try:
            described = json.loads((folder / "artifact.json").read_text())
            state = load_file(folder / "weights.safetensors")
            log = pd.read_csv(folder / "training_log.csv")
            scaler = Scaler(**{key: tuple(value) for key, value in described["scaler"].items()})
            fields = {name: described[name] for name in DESCRIBED}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DatasetError(
                f"artifact '{folder}' is incomplete or damaged ({error}). Run the training "
                f"pipeline again, or load another version with --load-versions."
            ) from error
        fields["people"] = tuple(fields["people"])
        return Artifact(**fields, scaler=scaler, state=state, log=log)

    def save(self, data: Artifact) -> None:
        from safetensors.numpy import save_file

        folder = Path(self._get_save_path())
        fresh = folder.with_name(folder.name + ".saving")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        described = {name: getattr(data, name) for name in DESCRIBED}
        described["scaler"] = asdict(data.scaler)
        (fresh / "artifact.json").write_text(json.dumps(described, indent=2))
        save_file(
            {name: np.asarray(array, order="C") for name, array in data.state.items()},
            fresh / "weights.safetensors",
        )
        # An empty log keeps its header, so that it loads again.
        log = data.log if len(data.log.columns) else pd.DataFrame(columns=["epoch"])
        log.to_csv(fresh / "training_log.csv", index=False)
        fresh.rename(folder)

    def _exists(self) -> bool:
        try:
            return (Path(self._get_load_path()) / "artifact.json").exists()
        except DatasetError:  # no version has been saved yet
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
