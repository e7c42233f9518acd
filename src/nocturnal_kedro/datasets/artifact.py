"""A fitted model or baseline as a versioned folder: safetensors, JSON, a CSV and their hashes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro.io.core import DatasetError

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.artifact import Artifact, load_artifact, save_artifact


class ArtifactDataset(AbstractVersionedDataset[Artifact, Artifact]):
    """`filepath` is a folder; see `training.artifact` for what lies in it."""

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
        try:
            return load_artifact(Path(self._get_load_path()))
        except InputError as error:
            raise DatasetError(str(error)) from error

    def save(self, data: Artifact) -> None:
        save_artifact(data, Path(self._get_save_path()))

    def _exists(self) -> bool:
        try:
            return (Path(self._get_load_path()) / "artifact.json").exists()
        except DatasetError:  # no version has been saved yet
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
