"""The one error a user can cause, and the one way to name what was allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where and what to do."""


def require_known(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`; otherwise raise with the nearest known name."""
    allowed = sorted(known)
    if name in allowed:
        return name
    nearest = get_close_matches(name, allowed, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise InputError(f"unknown {kind} '{name}'; known: {', '.join(allowed)}.{hint}")
