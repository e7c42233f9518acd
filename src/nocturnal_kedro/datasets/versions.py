"""Every version of the corpus, what it is made from, and what was built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from kedro.io import AbstractDataset, DatasetError

COLUMNS = (
    "version", "same_as", "fingerprint", "data", "sources", "people", "files", "models",
)  # fmt: skip


class DataVersionsDataset(AbstractDataset[NoReturn, pd.DataFrame]):
    """Loads one row per version of the corpus below `data_root`, oldest first; read-only.

    version, for --load-versions; same_as, the first version with the same content; fingerprint of
    the corpus; data, the fingerprint of corpus, splits and origins that models record ("" where
    the leak audit did not pass), and those of experiments with a task of their own after it;
    sources; people; files, how many raw ones; models built from it, as `experiment/model/version`.
    Raw files, options and code stand in the corpus's `made_from`.
    """

    def __init__(
        self,
        *,
        corpus: str,
        audit: str,
        models: str,
        path: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._root = Path(path)
        self._corpus, self._audit, self._models = corpus, audit, models
        self.metadata = metadata

    def load(self) -> pd.DataFrame:
        built = self._built()
        rows: list[tuple[Any, ...]] = []
        first: dict[str, str] = {}
        name = Path(self._corpus).name
        for file in sorted(self._root.glob(f"{self._corpus}/*/{name}/made_from.json")):
            version = file.parents[1].name
            described = json.loads(file.read_text())
            parts = described["made_from"]["parts"].values()
            data = self._audited(version)
            fingerprint = described["fingerprint"]
            rows.append(
                (
                    version,
                    first.setdefault(fingerprint, version),
                    fingerprint,
                    " ".join(data),
                    " ".join(sorted({part["source"] for part in parts})),
                    len(pd.read_csv(file.with_name("people.csv"), usecols=["source"])),
                    sum(len(part["files"]) for part in parts),
                    " ".join(sorted(name for one in data for name in built.get(one, []))),
                )
            )
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def save(self, data: NoReturn) -> NoReturn:
        raise DatasetError("the versions of the data are read, never written")

    def _audited(self, version: str) -> list[str]:
        """The fingerprint that the audit passed, and that of each experiment with its own task."""
        shared = self._root / self._audit
        files = (
            audit / version / shared.name
            for audit in (shared, *sorted(shared.parent.glob(f"*/{shared.name}")))
        )
        found = (
            str(pd.read_csv(file, usecols=["data"])["data"].iloc[0])
            for file in files
            if file.exists()
        )
        return list(dict.fromkeys(found))

    def _built(self) -> dict[str, list[str]]:
        """Every artifact by the data that it records."""
        built: dict[str, list[str]] = {}
        for file in sorted(self._root.glob(f"{self._models}/*/*/*/*/artifact.json")):
            experiment, model, version = file.parts[-5:-2]
            data = json.loads(file.read_text())["record"]["data"]
            built.setdefault(data, []).append(f"{experiment}/{model}/{version}")
        return built

    def _exists(self) -> bool:
        return self._root.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._root)}
