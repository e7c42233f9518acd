"""The corpus as a versioned folder of plain arrays beside a readable table of people."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version
from kedro.io.core import DatasetError

from nocturnal_kedro.series.corpus import Corpus, read_corpus, write_corpus


class CorpusDataset(AbstractVersionedDataset[Corpus, Corpus]):
    """`filepath` is a folder: one `.npy` per array, `people.csv` and `made_from.json`.

    An unchanged corpus is not written again: its new version shares the files of the last one.
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def load(self) -> Corpus:
        return read_corpus(Path(self._get_load_path()))

    def save(self, data: Corpus) -> None:
        write_corpus(data, Path(self._get_save_path()), self._newest())

    def _newest(self) -> Path | None:
        """The folder of the last version, if there is one."""
        return max(Path(self._filepath).glob(f"*/{self._filepath.name}"), default=None)

    def _exists(self) -> bool:
        try:
            return (Path(self._get_load_path()) / "made_from.json").exists()
        except DatasetError:  # no version has been saved yet
            return False

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}
