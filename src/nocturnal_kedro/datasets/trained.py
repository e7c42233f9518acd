"""Where whole trainings are kept, for every run that would train the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro.training.trained import Trained


class TrainedDataset(AbstractDataset[NoReturn, Trained]):
    """`filepath` is the folder; each training writes its artifact below it when it is whole."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Trained:
        return Trained(self._filepath)

    def save(self, data: NoReturn) -> None:
        raise DatasetError("a model is kept by the training that it is of")

    def _exists(self) -> bool:
        return True  # an empty folder, too, is one to write to

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
