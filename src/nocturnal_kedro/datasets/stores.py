"""Folders that nodes write to as they go, so that nothing which is done is lost or done twice."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro.datasets.answers import AnswersOnDisk
from nocturnal_kedro.training.trained import Trained
from nocturnal_kedro.training.unfinished import Unfinished

Store = TypeVar("Store")


class _StoreDataset(AbstractDataset[NoReturn, Store], Generic[Store]):
    """`filepath` is the folder; it loads as what reads and writes it."""

    opened_as: Callable[[Path], Store]
    written_by: str  # why it cannot be saved

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Store:
        return self.opened_as(self._filepath)

    def save(self, data: NoReturn) -> None:
        raise DatasetError(self.written_by)

    def _exists(self) -> bool:
        return True  # an empty folder, too, is one to write to

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class AnswersDataset(_StoreDataset[MutableMapping[str, bytes]]):
    """What was answered, by what was asked: a file for each."""

    opened_as = AnswersOnDisk
    written_by = "answers are written one by one, as a service gives them"


class TrainedDataset(_StoreDataset[Trained]):
    """Whole trainings, for every run that would train the same again."""

    opened_as = Trained
    written_by = "a model is kept by the training that it is of"


class UnfinishedDataset(_StoreDataset[Unfinished]):
    """Trainings that were cut off, to go on from."""

    opened_as = Unfinished
    written_by = "checkpoints are written by the training that they are of"
