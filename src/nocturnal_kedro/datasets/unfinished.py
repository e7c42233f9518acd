"""Where the unfinished trainings of a model are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro.training.unfinished import Unfinished


class UnfinishedDataset(AbstractDataset[NoReturn, Unfinished]):
    """`filepath` is the folder; a training writes below it as it goes."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Unfinished:
        return Unfinished(self._filepath)

    def save(self, data: NoReturn) -> None:
        raise DatasetError("checkpoints are written by the training that they are of")

    def _exists(self) -> bool:
        return True  # an empty folder, too, is one to write to

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
