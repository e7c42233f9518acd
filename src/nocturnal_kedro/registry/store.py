"""The tracking store: MLflow's, embedded in a file beside the data, or a server."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from nocturnal_kedro.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EMBEDDED = "sqlite:///"
# A server that does not answer is to cost seconds; what is set already stands.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Store:
    """A tracking store that answered."""

    uri: str
    client: MlflowClient

    def experiment(self, name: str) -> str:
        """The identifier of an experiment, which is made where it is not there."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise InputError(
                    f"experiment '{name}' was deleted in {self.uri}. Restore it there "
                    f"(`mlflow experiments restore -x {found.experiment_id}`), or name another "
                    f"tracking.uri."
                )
            return str(found.experiment_id)
        file = database_of(self.uri)
        place = (file.parent / "mlartifacts" / name).as_uri() if file else None
        return str(self.client.create_experiment(name, artifact_location=place))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else on this machine writes to an embedded store meanwhile."""
        file = database_of(self.uri)
        if file is None:
            yield
            return
        with locked(_lock_of(file)):
            yield

    def put(self, run_id: str, folder: Path, below: str | None = None) -> None:
        """Keep a folder's files with a run: on the same disk as links, which cost no room.

        What lies in folders of runs and artifacts is written once and never changed.
        """
        there = local_path(self.client.get_run(run_id).info.artifact_uri)
        if there is None:
            self.client.log_artifacts(run_id, str(folder), below)
            return
        shutil.copytree(folder, there / (below or ""), copy_function=_link, dirs_exist_ok=True)


def default_uri(data_root: Path) -> str:
    """The embedded store of a data_root."""
    return f"{EMBEDDED}{(data_root / 'mlflow.db').resolve()}"


def open_store(uri: str) -> Store:
    """Open the store, and see that it answers.

    Raises `InputError` where MLflow is not installed, and `StoreError` where the store does not
    answer.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise NotInstalledError(
            'the tracking store needs MLflow, which is not installed: pip install "nocturnal-kedro'
            '[registry]"'
        ) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    file = database_of(uri)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever comes first makes the tables.
    with told_of(uri), locked(_lock_of(file)) if file else nullcontext():
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    return Store(uri, client)


class StoreError(InputError):
    """The tracking store does not answer, or refuses."""


class NotInstalledError(InputError):
    """A package of an extra is not there."""


@contextmanager
def told_of(uri: str) -> Iterator[None]:
    """What goes wrong in a store is one error that names it."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"the tracking store {uri}: {told[:300]}") from error


def database_of(uri: str) -> Path | None:
    """The file of an embedded store; None of a server."""
    return Path(uri.removeprefix(EMBEDDED)).resolve() if uri.startswith(EMBEDDED) else None


def _lock_of(database: Path) -> Path:
    return database.with_name(database.name + ".lock")


def local_path(uri: str) -> Path | None:
    """Where an artifact's URI lies on this machine; None where it does not."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("file", "") else None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait until nobody else holds the file, and hold it."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        return shutil.copy2(source, target)
    return target
