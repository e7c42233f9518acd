"""One module per dataset: raw files into canonical readings, and nothing else.

A source has `TITLE` (its citation and where to get it), `Options`, and two functions:

    find(root: Path, options: Options) -> list[Files]         which files are read together
    read(files: Files, options: Options) -> Readings          the readings of one such part

`find` raises `InputError` where a file is absent. A part holds whole people and is read alone,
perhaps on another machine. A source without files, like a simulator, finds one empty part; one
whose content is not told by its files and options adds `stamp(options) -> str`, which is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nocturnal_kedro import plugins
from nocturnal_kedro.series import preparation
from nocturnal_kedro.series.grid import GridOptions
from nocturnal_kedro.series.schema import Readings

Files = tuple[Path, ...]


@dataclass(frozen=True)
class Part:
    """Files of a source that are read together, and how."""

    source: str
    files: Files
    options: BaseModel
    root: Path = Path()  # that the files' names count from: a folder's name may be a person's
    stamp: str = ""

    def read(self) -> Readings:
        """The canonical readings; raises `InputError` on a file that cannot be used.

        Every raw row is in the readings or counted as dropped, or this raises `AssertionError`.
        """
        module = plugins.load("source", self.source)
        readings: Readings = module.read(self.files, self.options)
        counted = readings.tally.groupby("effect")["rows"].sum()
        came, added, dropped = (int(counted.get(e, 0)) for e in ("in", "added", "dropped"))
        if came + added - dropped != len(readings.frame):
            raise AssertionError(
                f"source '{self.source}', {self.name}: of {came} rows read and {added} added, "
                f"{dropped} are counted as dropped, and {len(readings.frame)} are left: "
                f"{came + added - dropped - len(readings.frame)} vanished uncounted. Report this."
            )
        return readings

    @property
    def name(self) -> str:
        """The first file, to say where."""
        return f"'{self.files[0]}'" if self.files else "no file"

    def made_from(self, grid: GridOptions) -> dict[str, Any]:
        """What the prepared part follows from: each file's SHA-256, options, code and libraries."""
        reader = Path(str(plugins.load("source", self.source).__file__))
        return {
            "source": self.source,
            "files": {  # as sha256sum tells it
                file.relative_to(self.root).as_posix(): _digest(file).hex() for file in self.files
            },
            "options": self.options.model_dump(mode="json"),
            "stamp": self.stamp,
            "grid": grid.model_dump(mode="json"),
            "code": _sha256(reader, *sorted(reader.parent.glob("_*.py")), *preparation.CODE),
            "libraries": {name: version(name) for name in ("numpy", "pandas", "pyarrow", "tzdata")},
        }


def find_parts(names: Sequence[str], root: Path, given: dict[str, dict[str, Any]]) -> list[Part]:
    """Every part of the named sources below `root`; `given` are their options by name.

    Raises `InputError` on an unknown source, an unusable option or an absent file.
    """
    for name in (*names, *given):
        plugins.require("source", name)
    parts = []
    for name in dict.fromkeys(names):
        module = plugins.load("source", name)
        options = plugins.options("source", name, given.get(name))
        stamp = module.stamp(options) if hasattr(module, "stamp") else ""
        for files in module.find(root, options):
            parts.append(Part(name, tuple(files), options, root, stamp))
    return parts


def digest_of(made_from: dict[str, Any]) -> str:
    """SHA-256 over what a part is made from: equal parts are made once."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _sha256(*files: Path) -> str:
    """Of several files together."""
    return hashlib.sha256(b"".join(map(_digest, files))).hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
