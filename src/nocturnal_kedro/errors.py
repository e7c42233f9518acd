"""The one error a user can cause, and the one way to name what was allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Record = TypeVar("Record", bound=BaseModel)


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


def validated(record: type[Record], given: dict[str, Any] | None, what: str) -> Record:
    """`given` over the record's defaults; otherwise `InputError` with what is allowed."""
    try:
        return record.model_validate(given or {})
    except ValidationError as error:
        faults = "; ".join(
            f"'{'.'.join(map(str, fault['loc']))}' {fault['msg']} (given {_shown(fault['input'])})"
            for fault in error.errors()
        )
        allowed = ", ".join(record.model_fields)
        raise InputError(f"{what}: {faults}. Allowed: {allowed}.") from error


def _shown(given: object) -> str:
    """What was given, but for an address: it may hold a password."""
    return "an address" if "://" in str(given) else repr(given)
