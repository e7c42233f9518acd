"""What the selected sources hold: which files are read together, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.sources import Part, find_parts


class SourceDataset(AbstractDataset[NoReturn, list[Part]]):
    """Loads the parts of every selected source, found but not read; read-only.

    `sources` is a list, or names separated by spaces; `path` the folder that holds one folder per
    source; `options` maps a source's name to those of its `Options` that differ, and `credentials`
    to those that are secret.
    """

    def __init__(
        self,
        *,
        sources: str | Sequence[str] | None,
        path: str,
        options: dict[str, dict[str, Any]] | None = None,
        credentials: dict[str, dict[str, Any]] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._sources = sources.split() if isinstance(sources, str) else list(sources or ())
        self._path = Path(path)
        self._options = options or {}
        self._credentials = credentials or {}
        self.metadata = metadata

    def load(self) -> list[Part]:
        if not self._sources:
            raise InputError(
                f"'sources' is empty; name one or more of {', '.join(plugins.names('source'))}."
            )
        secret = {
            source: {name: value for name, value in of_it.items() if value}
            for source, of_it in self._credentials.items()
            if source in self._sources
        }
        given = {
            name: {**self._options.get(name, {}), **secret.get(name, {})}
            for name in {*self._options, *secret}
        }
        return find_parts(self._sources, self._path, given)

    def save(self, data: NoReturn) -> NoReturn:
        raise DatasetError("raw sources are read, never written")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"sources": self._sources, "path": str(self._path), "options": self._options}
