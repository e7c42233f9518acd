"""Commands of `kedro` in this project, beyond Kedro's own: `kedro models`, `runs` and `serve`.

Whatever is heavy is imported when a command is given: every `kedro` command loads this file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nocturnal_kedro.errors import InputError, validated
from nocturnal_kedro.serving.command import serve

if TYPE_CHECKING:
    import pandas as pd

    from nocturnal_kedro.registry.models import Registry
    from nocturnal_kedro.registry.tracking import Tracking

CRITERIA = ("experiment", "model", "kind", "strategy", "source", "data", "seed")


@click.group(name="nocturnal_kedro")
def cli() -> None:
    """Commands of nocturnal_kedro."""


@cli.group()
def models() -> None:
    """Find, compare and trace the models of finished runs."""


@cli.group()
def runs() -> None:
    """Folders of finished runs: list, send, trace, clean up."""


def of_place(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say whose runs are meant, and mistakes told in one line."""

    @click.option("--data-root", type=click.Path(path_type=Path), help="default: as in conf/")
    @click.option("--uri", help="of the tracking store; default: tracking.uri")
    @click.option("--env", "-e", help="the environment whose conf/ is read")
    @functools.wraps(command)
    def told(data_root: Path | None, uri: str | None, env: str | None, **given: Any) -> None:
        try:
            command(*_place(data_root, uri, env), **given)
        except InputError as error:
            raise click.ClickException(str(error)) from error

    return told


@models.command("find")
@click.option("--max-rmse", type=float, help="mg/dL, on validation")
@click.option("--max-crps", type=float, help="mg/dL, on validation")
@click.option("--csv", type=click.Path(path_type=Path), help="write the table here, whole")
@of_place
def find_models(
    data_root: Path,
    tracking: Tracking,
    max_rmse: float | None,
    max_crps: float | None,
    csv: Path | None,
    **criteria: str | None,
) -> None:
    """The models that meet all criteria, those best on validation first; without any, all."""
    named = {name: value for name, value in criteria.items() if value is not None}
    found = _there(data_root, tracking).find_models(max_rmse, max_crps, **named)
    if csv:
        found.to_csv(csv, index=False)
        click.echo(f"{len(found)} models: {csv}")
        return
    click.echo(_told(found) if len(found) else "No model meets that.")


for _name in CRITERIA:
    find_models = click.option(f"--{_name}")(find_models)


@models.command("trace")
@click.argument("model_id")
@of_place
def trace_model(data_root: Path, tracking: Tracking, model_id: str) -> None:
    """Where a model comes from, as JSON: run, commit, data, and raw files by their hashes."""
    click.echo(json.dumps(_there(data_root, tracking).trace(model_id), indent=2))


@models.command("compare")
@click.argument("first")
@click.argument("second")
@of_place
def compare_models(data_root: Path, tracking: Tracking, first: str, second: str) -> None:
    """How the errors of two models differ on the same nights, paired by people."""
    table = _there(data_root, tracking).compare(first, second)
    click.echo(table.to_string(index=False, float_format="{:.3f}".format))


@models.command("champion")
@click.argument("model_id")
@of_place
def make_champion(data_root: Path, tracking: Tracking, model_id: str) -> None:
    """Make a model the champion of its experiment, if it beats the one there is on validation."""
    click.echo(_there(data_root, tracking).make_champion(model_id))


@models.command("retire")
@click.argument("name")
@of_place
def retire_champion(data_root: Path, tracking: Tracking, name: str) -> None:
    """Leave an experiment without a champion, e.g. where new models are of other data."""
    click.echo(_there(data_root, tracking).retire_champion(name))


@models.command("delete")
@click.argument("model_id")
@of_place
def delete_model(data_root: Path, tracking: Tracking, model_id: str) -> None:
    """Take a model out of the registry; refused where a report still cites it."""
    click.echo(_there(data_root, tracking).delete(model_id, data_root))


@models.command("package")
@click.argument("model_id")
@click.argument("folder", type=click.Path(path_type=Path))
@of_place
def package_model(data_root: Path, tracking: Tracking, model_id: str, folder: Path) -> None:
    """Write a model as an MLflow python_function, which forecasts where the project is not."""
    from nocturnal_kedro.serving.packaged import write_pyfunc

    write_pyfunc(_there(data_root, tracking).folder_of(model_id), folder)
    click.echo(f"{folder}: mlflow.pyfunc.load_model('{folder}').predict(frame)")


@models.command("register")
@click.argument("artifact", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, help="under which it is registered")
@of_place
def register_model(data_root: Path, tracking: Tracking, artifact: Path, name: str) -> None:
    """Register the fitted model in a folder, e.g. one of 06_models/trained."""
    click.echo(_registry(data_root, tracking).register_model(artifact, name))


@runs.command("list")
@of_place
def list_runs(data_root: Path, tracking: Tracking) -> None:
    """Every run folder, the oldest first."""
    from nocturnal_kedro.registry.run_folder import RUNS, run_folders

    for folder in run_folders(data_root / RUNS):
        click.echo(str(folder))


@runs.command("send")
@of_place
def send_runs(data_root: Path, tracking: Tracking) -> None:
    """Send the run folders that the tracking store does not have."""
    from nocturnal_kedro.registry.tracking import send_all

    click.echo(send_all(data_root, tracking.model_copy(update={"send": True})))


@runs.command("trace")
@click.argument("leaderboard", type=click.Path(path_type=Path, exists=True))
@click.argument("model")
@of_place
def trace_row(data_root: Path, tracking: Tracking, leaderboard: Path, model: str) -> None:
    """Where the row of a model comes from, as JSON; LEADERBOARD is the file, or a run folder."""
    from nocturnal_kedro.registry.run_folder import trace

    click.echo(json.dumps(trace(leaderboard, model, data_root), indent=2))


@runs.command("clean")
@click.option("--keep", default=3, show_default=True, help="newest runs, and versions, that stay")
@click.option("--days", default=7.0, show_default=True, help="what is younger stays")
@click.option("--delete", is_flag=True, help="do it; without, it is listed")
@of_place
def clean_runs(data_root: Path, tracking: Tracking, keep: int, days: float, delete: bool) -> None:
    """What of earlier runs may go, and what that frees; nothing that the registry cites."""
    from nocturnal_kedro.registry.retention import clean, plan_cleanup
    from nocturnal_kedro.registry.tracking import waiting

    registry = _registry(data_root, tracking)
    registered = () if _is_absent(registry.uri) else registry.find_models()["key"]
    unsent = waiting(data_root, registry.uri) if tracking.send else []
    plan = plan_cleanup(data_root, keep, registered, unsent, days)
    for what, rows in plan.groupby("what"):
        click.echo(f"{what}: {len(rows)}, {rows['bytes'].sum() / 2**20:.1f} MiB")
        for path in rows["path"]:
            click.echo(f"  {path}")
    total = plan["bytes"].sum() / 2**20
    if delete:
        click.echo(f"{clean(plan) / 2**20:.1f} MiB are free.")
    else:
        click.echo(f"{total:.1f} MiB would be freed. To do it: the same command with --delete.")


@cli.command("serve", help=serve.help)
@of_place
def serve_model(data_root: Path, tracking: Tracking, **given: Any) -> None:
    """`serving.command.serve`, of this project's place."""
    uri = _registry(data_root, tracking).uri
    click.get_current_context().invoke(serve, data_root=data_root, uri=uri, **given)


serve_model.params += [one for one in serve.params if one.name not in ("data_root", "uri")]


def _place(data_root: Path | None, uri: str | None, env: str | None) -> tuple[Path, Tracking]:
    """Of the options or, where they are silent, of conf/."""
    from kedro.framework.session import KedroSession

    from nocturnal_kedro.registry.tracking import Tracking

    session: Any
    with KedroSession.create(project_path=Path.cwd(), env=env) as session:
        loader = session.load_context().config_loader
        parameters, shared = loader["parameters"], loader["globals"]
    given = parameters["tracking"] | ({"uri": uri} if uri else {})
    chosen = validated(Tracking, given, "tracking")
    return (data_root or Path(shared["data_root"])).resolve(), chosen


def _there(data_root: Path, tracking: Tracking) -> Registry:
    """The registry, which is not made where there is none."""
    registry = _registry(data_root, tracking)
    if _is_absent(registry.uri):
        raise InputError(
            f"there is no store at {registry.uri}. Run an experiment with this --data-root first, "
            f"or send its runs: kedro runs send."
        )
    return registry


def _registry(data_root: Path, tracking: Tracking) -> Registry:
    from nocturnal_kedro.registry.models import Registry
    from nocturnal_kedro.registry.store import default_uri

    return Registry(tracking.uri or default_uri(data_root))


def _is_absent(uri: str) -> bool:
    """Whether a store is a file that nobody has made."""
    from nocturnal_kedro.registry.store import database_of

    file = database_of(uri)
    return file is not None and not file.exists()


def _told(found: pd.DataFrame) -> str:
    """The columns that fit on a screen."""
    shown = found[["id", "model", "strategy", "sources"]].copy()
    shown["data"] = found["data"].str[:8]
    for split in ("validation", "patient", "temporal"):
        shown[split] = found[f"{split}_rmse_mg_dl"].map("{:.1f}".format)
    shown[""] = found["champion"].map({True: "champion", False: ""})
    return f"{shown.to_string(index=False)}\n\nRMSE in mg/dL; in order of validation."
