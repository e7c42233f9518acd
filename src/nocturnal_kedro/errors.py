"""The one error a user can cause, and the one way to name what was allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Record = TypeVar("Record", bound=BaseModel)


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where and what to do."""


class NoOriginsError(InputError):
    """Not one origin to test on is eligible; the message says why."""


class DivergedError(InputError):
    """A loss is no longer finite; the message says whose, and what may help."""


class StoppedError(InputError):
    """A training was told to stop and did so in order; the message says how it goes on."""


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
            _told(fault["loc"], fault["msg"].removeprefix("Value error, "), fault["input"])
            for fault in error.errors()
        )
        deepest = max((fault["loc"] for fault in error.errors()), key=len)
        allowed = ", ".join(_record_at(record, deepest).model_fields)
        raise InputError(f"{what}: {faults}. Allowed: {allowed}.") from error


def _told(place: tuple[int | str, ...], what: str, given: object) -> str:
    """A fault of one option, or of how several go together."""
    return f"'{'.'.join(map(str, place))}' {what} (given {_shown(given)})" if place else what


def _record_at(record: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """The record that holds the last name of a fault's place: an option may be one itself."""
    for name in place[:-1]:
        field = record.model_fields.get(str(name))
        inner = (field.annotation, *get_args(field.annotation)) if field else ()
        records = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not records:
            break
        [record] = records
    return record


def _shown(given: object) -> str:
    """What was given, but for an address: it may hold a password."""
    return "an address" if "://" in str(given) else repr(given)
