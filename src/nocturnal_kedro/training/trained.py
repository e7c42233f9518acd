"""Whole trainings, each kept by what it is of, so that no run trains the same model again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.artifact import (
    Artifact,
    load_artifact,
    save_artifact,
    sha256,
)
from nocturnal_kedro.versions import versions

logger = logging.getLogger(__name__)

# Rooms whose code a trained model follows from; the other models and baselines leave it alone.
CODE = ("series/", "training/", "metrics/calibration.py", "models/__init__.py")
ROOMS = ("baselines", "metrics", "models", "series", "training")
BESIDE = ("audit.py", "overlap.py", "quality.py", "cells.py", "space.py", "tuning.py")  # in them
# The project's code stands beside the versions, and what pandas makes of files in the data.
IRRELEVANT = ("nocturnal-kedro", "kedro", "pandas")


class Trained:
    """The artifacts below `root`, shared by all experiments and by runs at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder_of(self, key: str) -> Path:
        """That of the artifact with this key, which may not be there yet."""
        return self.root / key

    def find(self, key: str) -> Artifact | None:
        """The artifact, if it is there; raises `InputError` if it is damaged."""
        folder = self.folder_of(key)
        if not folder.exists():
            return None
        try:
            return load_artifact(folder)
        except InputError as error:
            raise InputError(
                f"a model that was trained before is damaged: {error} Or delete the folder: it is "
                f"then trained anew."
            ) from error

    def keep(self, key: str, artifact: Artifact) -> None:
        """Write it whole; where another process or thread was faster, its artifact stands."""
        if _hashes() != AT_START:
            logger.warning(
                "'%s' is not kept in '%s': the project's code was changed since this run began",
                artifact.name,
                self.root,
            )
            return
        own = f"{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"
        fresh = self.root / f"{key}.{own}"
        shutil.rmtree(fresh, ignore_errors=True)
        save_artifact(artifact, fresh)
        try:
            fresh.rename(self.folder_of(key))
        except OSError:
            if self.find(key) is None:
                raise
            shutil.rmtree(fresh)


def key_of(kind: str, name: str, what: dict[str, Any]) -> str:
    """The name of a training, by all that it follows from: settings, data, code and libraries."""
    followed = what | {
        "kind": kind,
        "name": name,
        "code": _code_of(kind, name),
        "versions": {n: v for n, v in versions().items() if n not in IRRELEVANT},
    }
    return hashlib.sha256(json.dumps(followed, sort_keys=True).encode()).hexdigest()[:20]


def _code_of(kind: str, name: str) -> str:
    """Hash of the code that a training of this model or baseline follows from."""
    own = (f"{kind}s/{name}.py", f"{kind}s/_")
    told = [
        f"{file} {digest}"
        for file, digest in AT_START.items()
        if file.startswith((*CODE, *own)) and file.rsplit("/")[-1] not in BESIDE
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _hashes() -> dict[str, str]:
    """SHA-256 of each file of the rooms that models are made in, by its place in the package."""
    package = importlib.util.find_spec("nocturnal_kedro")
    assert package is not None
    assert package.submodule_search_locations
    root = Path(package.submodule_search_locations[0])
    files = sorted(file for room in ROOMS for file in (root / room).rglob("*.py"))
    return {file.relative_to(root).as_posix(): sha256(file) for file in files}


# As it is imported: files that are edited while a run goes on are not what the run is made by.
AT_START = _hashes()
