"""A training that is asked to stop does so in order: by a signal, or by a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of a cluster that takes its machines back


class StopRequest:
    """Within it, SIGTERM and SIGUSR1 ask to stop instead of ending the process.

    Signals reach the main thread alone: in another one, and elsewhere in the process, they mean
    what they meant before. `file` is how the process that started this one passes it on.
    """

    def __init__(self, file: Path | None = None, told: Callable[[], None] | None = None) -> None:
        self._file, self._told = file, told
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether anybody has asked."""
        return self._asked or (self._file is not None and self._file.exists())

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._told:
            self._told()
