"""Where trainings are kept until their models are saved, each in a folder of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nocturnal_kedro.errors import InputError

logger = logging.getLogger(__name__)

TRAINING = "training.json"


class Unfinished:
    """The unfinished trainings of one model below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder_of(self, what: dict[str, Any]) -> Path:
        """That of the training with these settings; another one would have another folder."""
        text = json.dumps(what, indent=2, sort_keys=True)
        folder = self.root / hashlib.sha256(text.encode()).hexdigest()[:12]
        others = [file for file in self.root.glob(f"*/{TRAINING}") if file.parent != folder]
        if others:
            logger.info(
                "'%s' holds %d trainings or searches with other settings; %s of each tells them; "
                "those that no run is at may be deleted",
                self.root,
                len(others),
                TRAINING,
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRAINING).write_text(text)
        return folder


@contextmanager
def only_one(folder: Path | None) -> Iterator[None]:
    """Raise `InputError` where another process trains in `folder` now."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)  # who was here before may have cleared it away
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another run is training the same model with the same settings now: '{folder}' is "
                f"in use. Wait for it, or give this run a data_root of its own."
            ) from error
        yield
