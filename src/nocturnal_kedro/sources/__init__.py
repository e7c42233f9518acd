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
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nocturnal_kedro import plugins
from nocturnal_kedro.series.schema import Readings

Files = tuple[Path, ...]


@dataclass(frozen=True)
class Part:
    """Files of a source that are read together, and how."""

    source: str
    files: Files
    options: BaseModel
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

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What the readings follow from: each file's SHA-256, the options, the reader's code."""
        module = plugins.load("source", self.source)
        assert module.__file__
        code = Path(module.__file__)
        return {
            "source": self.source,
            "files": {str(name): _sha256(file) for name, file in self._named_files()},
            "options": self.options.model_dump(mode="json"),
            "stamp": self.stamp,
            "code": digest_of_code(code, *sorted(code.parent.glob("_*.py"))),
        }

    def _named_files(self) -> list[tuple[Path, Path]]:
        """Each file after its name below the folder that holds all: a moved folder is the same."""
        parents = [str(file.absolute().parent) for file in self.files]
        above = os.path.commonpath(parents) if parents else ""
        return [(file.absolute().relative_to(above), file) for file in self.files]


def find_parts(names: Sequence[str], root: Path, given: dict[str, dict[str, Any]]) -> list[Part]:
    """Every part of the named sources below `root`; `given` are their options by name.

    Raises `InputError` on an unknown source, an unusable option or an absent file.
    """
    for name in (*names, *given):
        plugins.require("source", name)
    parts = []
    for name in dict.fromkeys(names):
        module, options = (
            plugins.load("source", name),
            plugins.options("source", name, given.get(name)),
        )
        stamp = module.stamp(options) if hasattr(module, "stamp") else ""
        parts += [Part(name, tuple(files), options, stamp) for files in module.find(root, options)]
    return parts


def digest_of_code(*files: Path) -> str:
    """SHA-256 over source files: what a cached result was made by."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def digest_of(record: dict[str, Any]) -> str:
    """SHA-256 over a record that JSON can hold."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
