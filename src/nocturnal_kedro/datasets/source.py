"""The raw tables of the selected sources, read by their modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.series.schema import Readings


class SourceDataset(AbstractDataset[NoReturn, dict[str, Readings]]):
    """Loads {source name: Readings}; read-only.

    `sources` is a list, or names separated by spaces; `path` the folder that holds one folder per
    source; `options` maps a source's name to those of its `Options` that differ.
    """

    def __init__(
        self,
        *,
        sources: str | Sequence[str] | None,
        path: str,
        options: dict[str, dict[str, Any]] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._sources = sources.split() if isinstance(sources, str) else list(sources or ())
        self._path = Path(path)
        self._options = options or {}
        self.metadata = metadata

    def load(self) -> dict[str, Readings]:
        if not self._sources:
            raise InputError(
                f"'sources' is empty; name one or more of {', '.join(plugins.names('source'))}."
            )
        for name in (*self._sources, *self._options):
            plugins.require("source", name)
        return {
            name: plugins.load("source", name).read(
                self._path, plugins.options("source", name, self._options.get(name))
            )
            for name in dict.fromkeys(self._sources)
        }

    def save(self, data: NoReturn) -> NoReturn:
        raise DatasetError("raw sources are read, never written")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"sources": self._sources, "path": str(self._path), "options": self._options}
