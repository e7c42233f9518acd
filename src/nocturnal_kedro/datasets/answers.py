"""What a service has answered, by what it was asked: nothing is paid for twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path


class AnswersOnDisk(MutableMapping[str, bytes]):
    """One file for each answer, whole or absent; the key is the file's name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, key: str) -> bytes:
        try:
            return (self._folder / key).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / f"{key}.saving-{os.getpid()}"
        fresh.write_bytes(value)
        fresh.rename(self._folder / key)

    def __delitem__(self, key: str) -> None:
        (self._folder / key).unlink()

    def __iter__(self) -> Iterator[str]:
        if not self._folder.is_dir():
            return iter(())
        return (file.name for file in sorted(self._folder.iterdir()) if ".saving" not in file.name)

    def __len__(self) -> int:
        return sum(1 for _ in self)
