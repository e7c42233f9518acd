"""Fitted models by name: registered once, found by what they are, traced to where they come from.

A registered model is an experiment, its versions are the models and baselines of its runs, and its
champion is the version that no other has beaten on validation. `nocturnal_point/3` and
`nocturnal_point@champion` name one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nocturnal_kedro.errors import InputError, require_known
from nocturnal_kedro.metrics.compare import FEWEST_TO_TELL_APART, Comparison
from nocturnal_kedro.metrics.forecasts import PERSON
from nocturnal_kedro.metrics.significance import (
    LEVEL,
    bootstrap_means,
    interval,
    wilcoxon_p,
    win_rate,
)
from nocturnal_kedro.registry.run_folder import (
    DETAILS,
    METADATA,
    RUNS,
    of_seed,
    raw_files,
    read_metadata,
    read_people,
    run_folders,
)
from nocturnal_kedro.registry.store import Store, local_path, locked, open_store, told_of
from nocturnal_kedro.registry.tracking import FOLDER, MODEL, PARENT
from nocturnal_kedro.series.schema import TEST_SPLITS
from nocturnal_kedro.training.artifact import SUMS, Artifact, load_artifact, require_whole, sha256

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CONTENT = "nocturnal.content"  # the tag by which an artifact is found again
JUDGED_BY = "validation"  # nothing is chosen by a test
CRITERIA = ("model", "kind", "strategy", "source", "experiment", "data", "seed")
SHOWN = ("rmse_mg_dl", "crps_mg_dl")
SPLITS = (JUDGED_BY, *TEST_SPLITS)
COLUMNS = (
    "id", "experiment", "model", "kind", "strategy", "seed", "sources", "data", "champion",
    "registered", *(f"{split}_{measure}" for split in SPLITS for measure in SHOWN),
    "training_hours", "parameters", "key", "run",
)  # fmt: skip


class Registry:
    """The models of one tracking store."""

    def __init__(self, uri: str, store: Store | None = None) -> None:
        self.uri = uri
        self._given = store

    @cached_property
    def store(self) -> Store:
        """Opened when it is first asked."""
        return self._given or open_store(self.uri)

    def register_model(
        self,
        artifact: Path,
        name: str,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> str:
        """Register the artifact in a folder as a version of `name`, and return its id.

        What is registered already, by its content, keeps its id, however many register it at once.
        Without `run_id`, the run that its weights are kept with, it gets a run of its own. Raises
        `InputError` where the artifact is damaged.
        """
        artifact = artifact.resolve()
        require_whole(artifact)
        content = sha256(artifact / SUMS)
        # A server has no lock of ours: who registers the same waits here.
        beside = locked(Path(tempfile.gettempdir()) / f"nocturnal-{content[:20]}.lock")
        with beside, self.store.alone(), told_of(self.uri):
            client = self.store.client
            self._make(name)
            found = client.search_model_versions(
                f"name = '{name}' and tags.\"{CONTENT}\" = '{content}'"
            )
            if found:
                return _id(min(found, key=lambda version: int(version.version)))
            described = json.loads((artifact / "artifact.json").read_text())
            told = _tags_of(described) | {CONTENT: content} | (tags or {})
            if run_id is None:
                run_id = self._run_of_its_own(name, artifact, told)
            run = client.get_run(run_id)
            kept = sha256(self._file(run, f"{MODEL}/{SUMS}"))
            if kept != content:
                raise InputError(
                    f"the run {run_id} of {self.uri} keeps another model than '{artifact}': that "
                    f"one was not registered."
                )
            version = client.create_model_version(
                name, source=f"{run.info.artifact_uri}/{MODEL}", run_id=run_id, tags=told
            )
        return _id(version)

    def get_model(self, model_id: str) -> Artifact:
        """The fitted model, its files checked against their hashes; see `find`."""
        return load_artifact(self.folder_of(model_id))

    def folder_of(self, model_id: str) -> Path:
        """Where the artifact of a version lies, fetched from the store if it is elsewhere."""
        version = self.find(model_id)
        there = local_path(str(version.source))
        if there is None:
            from mlflow.artifacts import download_artifacts

            with told_of(self.uri):
                there = Path(download_artifacts(version.source, tracking_uri=self.uri))
        return there

    def find(self, model_id: str) -> ModelVersion:
        """The version that an id names; `InputError` where there is none."""
        name, at, alias = model_id.partition("@")
        if not at:
            name, slash, number = model_id.rpartition("/")
            if not slash or not number.isdigit():
                raise InputError(
                    f"'{model_id}' names no model. It is NAME/VERSION, e.g. nocturnal_point/3, or "
                    f"NAME@{CHAMPION}."
                )
        client = self.store.client
        with told_of(self.uri):
            require_known("registered model", name, self.names())
            if at:
                known = client.get_registered_model(name).aliases
                if alias not in known:
                    raise InputError(
                        f"'{name}' has no {alias}; it has "
                        f"{', '.join(sorted(known)) or 'no alias'}. `kedro models champion "
                        f"{name}/VERSION` makes one."
                    )
                number = known[alias]
            found = client.search_model_versions(f"name = '{name}'")
            versions = {str(version.version): version for version in found}
            require_known(f"version of '{name}'", str(number), versions)
        return versions[str(number)]

    def names(self) -> list[str]:
        """Everything that is registered."""
        return [str(model.name) for model in self._registered()]

    def find_models(
        self, max_rmse: float | None = None, max_crps: float | None = None, **criteria: str
    ) -> pd.DataFrame:
        """The versions that meet all criteria: of each experiment and data, the newest data first,
        those best on validation first.

        `criteria`: model, kind, strategy, source (one of those it was evaluated on), experiment,
        data (the first digits of the fingerprint), seed. `max_rmse` and `max_crps` are of
        validation, in mg/dL: tests are shown to be read, and nothing is chosen by them. Columns:
        id, model, kind, strategy, seed, sources, data, champion, registered, then
        validation_rmse_mg_dl and so on, training_hours, parameters, key, run.
        """
        for name in criteria:
            require_known("criterion", name, CRITERIA)
        rows = self._rows()
        for name, value in criteria.items():
            rows = rows[_meets(rows, name, str(value))]
        for column, most in (("rmse_mg_dl", max_rmse), ("crps_mg_dl", max_crps)):
            if most is not None:
                rows = rows[rows[f"{JUDGED_BY}_{column}"] <= most]
        # Errors on different data are not compared: the newest data come first.
        newest = rows.groupby(["experiment", "data"])["registered"].transform("max")
        by = ["experiment", "newest", f"{JUDGED_BY}_rmse_mg_dl"]
        rows = rows.assign(newest=newest).sort_values(by, ascending=[True, False, True])
        return rows.drop(columns="newest").reset_index(drop=True)

    def compare(
        self, first: str, second: str, comparison: Comparison | None = None
    ) -> pd.DataFrame:
        """How the errors of two versions differ on the same nights, by split and measure.

        Columns: split, measure, people, nights, first, second, difference (first minus second)
        with its 95 % interval over people low to high, win_rate, wilcoxon_p. Raises `InputError`
        where they were scored on no night in common.
        """
        options = comparison or Comparison()
        of_both = [self._people_of(model_id) for model_id in (first, second)]
        key = ["data", "split", *PERSON, "scored_on"]
        both = of_both[0].merge(of_both[1], on=key, suffixes=("_1", "_2"))
        if both.empty:
            raise InputError(
                f"{first} and {second} were scored on no night in common: their data are "
                f"{_data_of(of_both[0])} and {_data_of(of_both[1])}. Train both on the same "
                f"version of the data to compare them."
            )
        rows = []
        for split, scored in both.groupby("split"):
            for measure in SHOWN:
                values_2P = scored[[f"{measure}_1", f"{measure}_2"]].to_numpy(float).T
                rows.append(
                    {"split": split, "measure": measure, "people": len(scored)}
                    | {"nights": int(scored["nights_1"].sum())}
                    | _difference(values_2P, options)
                )
        return pd.DataFrame(rows)

    def make_champion(self, model_id: str, comparison: Comparison | None = None) -> str:
        """Make a version the champion of its name if it beats the one there is, and tell why.

        It does where validation, paired by people, tells them apart: the 95 % interval of the
        difference of RMSE lies below 0 and the signed ranks of six people or more have p < 0.05.
        The first is the champion without a test. Raises `InputError` where it does not beat it.
        """
        version = self.find(model_id)
        own, name = _id(version), str(version.name)
        client = self.store.client
        self._people_of(model_id)  # whom nobody has scored is no champion
        with self.store.alone(), told_of(self.uri):
            now = client.get_registered_model(name).aliases.get(CHAMPION)
            if now is None:
                client.set_registered_model_alias(name, CHAMPION, version.version)
                return f"{own} is the first champion of {name}: there was none to beat."
            if str(now) == str(version.version):
                return f"{own} is the champion of {name} already."
        champion = f"{name}/{now}"
        table = self.compare(own, champion, comparison)
        judged = table[(table["split"] == JUDGED_BY) & (table["measure"] == "rmse_mg_dl")]
        if judged.empty:
            raise InputError(f"{own} and {champion} share no validation night to be compared on.")
        row = judged.iloc[0]
        told = (
            f"on {row['nights']} validation nights of {row['people']} people the RMSE of {own} "
            f"differs by {row['difference']:.2f} mg/dL ({row['low']:.2f} to {row['high']:.2f}, "
            f"p = {row['wilcoxon_p']:.3g}) from that of {champion}"
        )
        few = row["people"] < FEWEST_TO_TELL_APART
        if few or row["high"] >= 0 or row["wilcoxon_p"] >= LEVEL:
            why = "too few people to tell models apart" if few else "that is no better for certain"
            raise InputError(f"{champion} stays the champion: {told}; {why}.")
        with self.store.alone(), told_of(self.uri):
            if client.get_registered_model(name).aliases.get(CHAMPION) != now:
                raise InputError(
                    f"{champion} is no longer the champion of {name}: somebody else made another "
                    f"one meanwhile. Ask again."
                )
            client.set_registered_model_alias(name, CHAMPION, version.version)
        return f"{own} is the champion of {name}: {told}."

    def retire_champion(self, name: str) -> str:
        """Leave a name without a champion, as where its data are no longer those of new models."""
        champion = _id(self.find(f"{name}@{CHAMPION}"))
        with self.store.alone(), told_of(self.uri):
            self.store.client.delete_registered_model_alias(name, CHAMPION)
        return f"{champion} is no longer the champion of {name}, which has none now."

    def delete(self, model_id: str, data_root: Path) -> str:
        """Take a version out of the registry; its run keeps its weights and numbers.

        Raises `InputError` for a champion, and where the report of a run folder below `data_root`
        still cites it.
        """
        version = self.find(model_id)
        own = _id(version)
        with self.store.alone(), told_of(self.uri):
            aliases = self.store.client.get_registered_model(version.name).aliases
            if str(aliases.get(CHAMPION)) == str(version.version):
                raise InputError(
                    f"{own} is the champion of {version.name}. Make another one the champion first."
                )
            if citing := self.cited_by(own, data_root):
                raise InputError(
                    f"{own} is cited by the report of {', '.join(f.name for f in citing)}. Delete "
                    f"that run folder first, e.g. by `kedro runs clean`."
                )
            self.store.client.delete_model_version(version.name, version.version)
        return f"{own} is no longer registered."

    def cited_by(self, model_id: str, data_root: Path) -> list[Path]:
        """The run folders whose report shows this model."""
        key = self.find(model_id).tags.get("nocturnal.key")
        return [
            folder
            for folder in run_folders(data_root / RUNS)
            if any(key in model["keys"] for model in read_metadata(folder)["models"].values())
        ]

    def trace(self, model_id: str) -> dict[str, Any]:
        """Where a model comes from: its run, commit, data, and every raw file by its hash."""
        version = self.find(model_id)
        parent = self._parent(version)
        told: dict[str, Any] = {"id": _id(version), "artifact": str(version.source)}
        told |= {name.removeprefix("nocturnal."): value for name, value in version.tags.items()}
        if parent is None:
            return told | {"run": None, "lane": None, "raw_files": None}
        with told_of(self.uri):
            lane = self.store.client.get_run(str(version.run_id)).info.run_name
        metadata = json.loads(self._file(parent, METADATA).read_text())
        return told | {
            "run": metadata["run_id"],
            "lane": lane,
            "folder": parent.data.tags[FOLDER],
            "command": metadata["command"],
            "commit": metadata["git"]["commit"],
            "dirty": metadata["git"]["dirty"],
            "data": metadata["data"],
            "stages": metadata["stages"],
            "datasets": metadata["datasets"],
            "raw_files": raw_files(metadata),
        }

    def run_of(self, parent: str, lane: str) -> str:
        """The run of a model below that of its experiment."""
        client = self.store.client
        experiment = client.get_run(parent).info.experiment_id
        for run in client.search_runs([experiment], f"tags.\"{PARENT}\" = '{parent}'"):
            if run.info.run_name == lane:
                return str(run.info.run_id)
        raise InputError(f"the run {parent} of {self.uri} has no model '{lane}'.")

    def _registered(self) -> Any:
        return self.store.client.search_registered_models(max_results=1000)

    def _make(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.store.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _run_of_its_own(self, name: str, artifact: Path, tags: dict[str, str]) -> str:
        client = self.store.client
        run = client.create_run(self.store.experiment(name), tags=tags, run_name=artifact.name)
        run_id = str(run.info.run_id)
        self.store.put(run_id, artifact, MODEL)
        client.set_terminated(run_id)
        return run_id

    def _rows(self) -> pd.DataFrame:
        """Every version with what its run measured."""
        client = self.store.client
        rows = []
        with told_of(self.uri):
            for registered in self._registered():
                champion = str(registered.aliases.get(CHAMPION))
                for version in client.search_model_versions(f"name = '{registered.name}'"):
                    run = client.get_run(str(version.run_id))
                    rows.append(_row(version, run, champion))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _parent(self, version: ModelVersion) -> Any:
        client = self.store.client
        with told_of(self.uri):
            parent = client.get_run(str(version.run_id)).data.tags.get(PARENT)
            return client.get_run(parent) if parent else None

    def _file(self, run: Any, name: str) -> Path:
        from mlflow.artifacts import download_artifacts

        with told_of(self.uri):
            there = local_path(run.info.artifact_uri)
            if there is not None:
                return there / name
            uri = f"{run.info.artifact_uri}/{name}"
            return Path(download_artifacts(uri, tracking_uri=self.uri))

    def _people_of(self, model_id: str) -> pd.DataFrame:
        """The errors of one version by person, as its run scored them."""
        version = self.find(model_id)
        parent = self._parent(version)
        if parent is None:
            raise InputError(
                f"{_id(version)} was registered by itself, and no run has scored it: it cannot be "
                f"compared."
            )
        people = read_people(self._file(parent, DETAILS))
        own = people[people["model"] == version.tags["nocturnal.model"]]
        return of_seed(own, version.tags["nocturnal.seed"])


def _row(version: ModelVersion, run: Any, champion: str) -> dict[str, Any]:
    tags, metrics = version.tags, run.data.metrics
    told = {
        "id": _id(version),
        "experiment": str(version.name),
        "champion": champion == str(version.version),
        "registered": pd.Timestamp(version.creation_timestamp, unit="ms"),
        "training_hours": metrics.get("training_hours", np.nan),
        "parameters": metrics.get("parameters", np.nan),
        "run": str(version.run_id),
    }
    for name in ("model", "kind", "strategy", "seed", "data", "key"):
        told[name] = tags.get(f"nocturnal.{name}", "")
    told["sources"] = run.data.tags.get("nocturnal.sources", "")
    for split in SPLITS:
        for measure in SHOWN:
            told[f"{split}_{measure}"] = metrics.get(f"{split}.{measure}", np.nan)
    return told


def _meets(rows: pd.DataFrame, name: str, value: str) -> pd.Series:
    if name == "source":
        return rows["sources"].str.split().map(lambda sources: value in sources).astype(bool)
    if name == "data":
        return rows["data"].str.startswith(value)
    return rows[name].astype(str) == value


def _difference(values_2P: np.ndarray, options: Comparison) -> dict[str, float]:
    means_R2 = bootstrap_means(values_2P, options.resamples, options.seed)
    [low], [high] = interval(means_R2[:, :1] - means_R2[:, 1:])
    difference_1P = values_2P[:1] - values_2P[1:]
    return {
        "first": float(values_2P[0].mean()),
        "second": float(values_2P[1].mean()),
        "difference": float(difference_1P.mean()),
        "low": float(low),
        "high": float(high),
        "win_rate": float(win_rate(difference_1P)[0]),
        "wilcoxon_p": float(wilcoxon_p(difference_1P)[0]),
    }


def _tags_of(described: dict[str, Any]) -> dict[str, str]:
    record = described["record"]
    seed = (record.get("training") or {}).get("seed")
    return {
        "nocturnal.model": described["name"],
        "nocturnal.kind": described["kind"],
        "nocturnal.strategy": str(described["options"].get("strategy", "")),
        "nocturnal.seed": "" if seed is None else str(seed),
        "nocturnal.data": record.get("data") or "",
        "nocturnal.key": record.get("key") or "",
        "nocturnal.people": hashlib.sha256(" ".join(described["people"]).encode()).hexdigest()[:16],
    }


def _data_of(people: pd.DataFrame) -> str:
    return ", ".join(sorted({data[:12] for data in people["data"]}))


def _id(version: ModelVersion) -> str:
    return f"{version.name}/{version.version}"
