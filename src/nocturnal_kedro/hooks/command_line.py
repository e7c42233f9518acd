"""On the command line a mistake is one line; in Python it stays an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from nocturnal_kedro.errors import InputError, StoppedError


class ToldToStop(click.ClickException):
    """The same command goes on: a batch script may give it again."""

    exit_code = 75  # EX_TEMPFAIL


@contextmanager
def told_on_the_command_line() -> Iterator[None]:
    """What is an `InputError` inside is told as one line, if click is at work."""
    try:
        yield
    except InputError as error:
        tell_on_the_command_line(error)
        raise


def tell_on_the_command_line(error: InputError | str) -> None:
    """Raise the error as click shows it, if click is at work; elsewhere it goes on as it is."""
    if click.get_current_context(silent=True) is not None:
        kind = ToldToStop if isinstance(error, StoppedError) else click.ClickException
        raise kind(str(error))
