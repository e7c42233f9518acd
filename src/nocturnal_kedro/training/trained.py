"""Whole trainings, each kept by what it is of, so that no run trains the same model again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import threading
from functools import cache
from pathlib import Path
from typing import Any

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.training.artifact import (
    Artifact,
    load_artifact,
    require_whole,
    save_artifact,
    sha256,
)
from nocturnal_kedro.versions import versions

# Rooms whose code a trained model follows from; the other models and baselines leave it alone.
CODE = ("series", "training", "metrics/calibration.py", "models/__init__.py")
BESIDE = ("audit.py", "overlap.py", "quality.py", "cells.py", "space.py", "tuning.py")  # in them
IRRELEVANT = ("nocturnal-kedro", "kedro", "pandas")  # the code itself stands beside the versions


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
        own = f"{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"
        fresh = self.root / f"{key}.{own}"
        shutil.rmtree(fresh, ignore_errors=True)
        save_artifact(artifact, fresh)
        try:
            fresh.rename(self.folder_of(key))
        except OSError:
            require_whole(self.folder_of(key))
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


@cache
def _code_of(kind: str, name: str) -> str:
    package = importlib.util.find_spec("nocturnal_kedro")
    assert package is not None
    assert package.submodule_search_locations
    root = Path(package.submodule_search_locations[0])
    own = root / f"{kind}s"
    places = [root / place for place in CODE] + [own / f"{name}.py", *own.glob("_*.py")]
    files = [
        file for place in places for file in (place.glob("*.py") if place.is_dir() else [place])
    ]
    files = [file for file in files if file.name not in BESIDE]
    told = sorted(f"{file.relative_to(root).as_posix()} {sha256(file)}" for file in set(files))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
