"""`kedro serve`: the HTTP service of one model, on this machine unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nocturnal_kedro.errors import InputError

if TYPE_CHECKING:
    from nocturnal_kedro.serving.tonight import About
    from nocturnal_kedro.training.artifact import Artifact

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model_id", required=False)
@click.option(
    "--artifact",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of a fitted model, instead of a registered one.",
)
@click.option("--lows", type=FILE, help="Its MODEL_lows.parquet: how true its cards are.")
@click.option("--outcomes", type=FILE, help="The outcomes.parquet of the same run.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of torch.")
@click.option("--uri", help="Of the registry; by default the one below the data root.")
@click.option("--data-root", default="data", show_default=True, type=click.Path(path_type=Path))
def serve(
    model_id: str | None,
    folder: Path | None,
    lows: Path | None,
    outcomes: Path | None,
    host: str,
    port: int,
    threads: int,
    uri: str | None,
    data_root: Path,
) -> None:
    """Answer by MODEL_ID, such as nocturnal_point@champion, over HTTP. Not a medical device."""
    from nocturnal_kedro.serving.service import make_app, require_serving

    try:
        require_serving()
        artifact, about = find_model(model_id, folder, uri, data_root)
        about = with_validation(about, lows, outcomes)
        app = make_app(artifact, about, threads)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    import uvicorn

    click.echo(f"{about.model_id} answers at http://{host}:{port}, described at /openapi.json")
    # An access log would tell who asks when; what they ask is not in it either.
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")


def find_model(
    model_id: str | None, folder: Path | None, uri: str | None, data_root: Path
) -> tuple[Artifact, About]:
    """The registered model, or that of a folder; raises `InputError` unless one of both is named.

    Of a registered one whose run lies below `data_root` the validation nights are found, too.
    """
    from nocturnal_kedro.serving.tonight import read_about
    from nocturnal_kedro.training.artifact import load_artifact

    if (model_id is None) == (folder is None):
        raise InputError(
            "name one model: a registered one, as `kedro serve nocturnal_point@champion`, or a "
            "folder, as `kedro serve --artifact=data/06_models/EXPERIMENT/MODEL/VERSION/MODEL`."
        )
    if folder is not None:
        artifact = load_artifact(folder)
        return artifact, read_about(folder, artifact.name, "")
    assert model_id is not None
    from nocturnal_kedro.registry.models import Registry
    from nocturnal_kedro.registry.store import default_uri

    registry = Registry(uri or default_uri(data_root))
    told = registry.trace(model_id)
    folder = registry.folder_of(told["id"])  # asked by its alias it might be another one by now
    artifact = load_artifact(folder)
    experiment = told["id"].rpartition("/")[0]
    trained = (told.get("stages") or {}).get("training")
    about = read_about(folder, told["id"], experiment, trained)
    files = _of_validation(told, experiment, data_root)
    return artifact, with_validation(about, *files)


def with_validation(about: About, lows: Path | None, outcomes: Path | None) -> About:
    """Beside what it is called, what was said of validation nights and what came of them."""
    from dataclasses import replace

    import pandas as pd

    if (lows is None) != (outcomes is None):
        raise InputError("cards lean on lows and outcomes together: give both, or neither.")
    if lows is None or outcomes is None:
        return about
    return replace(about, lows=pd.read_parquet(lows), outcomes=pd.read_parquet(outcomes))


def _of_validation(
    told: dict[str, Any], experiment: str, data_root: Path
) -> tuple[Path | None, Path | None]:
    """Lows and outcomes of the run that a model comes from, where they still lie in its place.

    They are of its own lane: what another seed has said shows nothing of how true this one is.
    """
    versions, lane = told.get("datasets") or {}, told.get("lane")
    # Without a task of its own an experiment has everybody's.
    own = versions.get(f"{experiment}.outcomes")
    folder = data_root / "05_model_input" / (experiment if own else "")
    files = (
        _versioned(
            data_root / f"07_model_output/{experiment}/{lane}_lows.parquet",
            versions.get(f"{experiment}.{lane}.lows"),
        ),
        _versioned(folder / "outcomes.parquet", own or versions.get("outcomes")),
    )
    return files if all(file and file.is_file() for file in files) else (None, None)


def _versioned(file: Path, version: str | None) -> Path | None:
    return file / version / file.name if version else None
