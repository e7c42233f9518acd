"""What goes is what nothing cites, and it is listed before it goes."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.retention import clean, plan_cleanup
from nocturnal_kedro.training.artifact import save_artifact
from tests.registry.conftest import Invent, invent_artifact


def named(plan: object, what: str) -> set[str]:
    return {path.name for path in plan.loc[plan["what"] == what, "path"]}


def test_the_newest_and_the_best_run_of_each_experiment_stay(
    invent: Invent, tmp_path: Path
) -> None:
    # By validation the second is the best.
    runs = [
        invent({"ttm": [error]}, day=day) for day, error in ((1, 30.0), (2, 20), (3, 25), (4, 26))
    ]
    other = invent({"ttm": [90.0]}, day=9, experiment="prandial")
    plan = plan_cleanup(tmp_path, keep=1, registered=(), days=0)
    assert named(plan, "run") == {runs[0].name, runs[2].name}
    assert named(plan, "version") == {"2026-03-01T08.00.00.000Z", "2026-03-03T08.00.00.000Z"}
    assert not any("prandial" in str(path) for path in plan["path"])
    clean(plan)
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == sorted(
        (runs[1].name, runs[3].name, other.name)
    )
    assert plan_cleanup(tmp_path, keep=1, registered=(), days=0).empty


def test_trainings_that_the_registry_or_a_run_cites_stay(
    invent: Invent, send: Callable[[], str], registry: Registry, tmp_path: Path
) -> None:
    invent({"ttm": [20.0]}, day=1)
    cited = f"{1:010d}{0:010d}"
    for key in (cited, "registered", "nobody's"):
        save_artifact(invent_artifact("ttm", key), tmp_path / "06_models/trained" / key)
    registry.register_model(tmp_path / "06_models/trained/registered", "other")
    plan = plan_cleanup(tmp_path, keep=1, registered=registry.find_models()["key"], days=0)
    assert named(plan, "training") == {"nobody's"}
    clean(plan)
    assert registry.get_model("other/1").record["key"] == "registered"


def test_only_an_abandoned_half_of_a_training_goes(tmp_path: Path) -> None:
    trained = tmp_path / "06_models/trained"
    of_now, of_old = (trained / f"{'a' * 20}.node.{number}.1" for number in (1, 2))
    for folder in (of_now, of_old):
        folder.mkdir(parents=True)
    os.utime(of_old, (0, 0))
    assert plan_cleanup(tmp_path, 1, (), days=0)["path"].tolist() == [of_old]


def test_bytes_are_those_that_will_be_free(invent: Invent, tmp_path: Path) -> None:
    """A file that the store links to, too, frees nothing."""
    invent({"ttm": [20.0]}, day=1)
    invent({"ttm": [20.0]}, day=2)
    [old] = tmp_path.glob("06_models/*/ttm/2026-03-01*/ttm")
    kept = tmp_path / "kept"
    kept.mkdir()
    os.link(old / "weights.safetensors", kept / "weights.safetensors")
    plan = plan_cleanup(tmp_path, keep=1, registered=(), days=0).set_index("what")
    alone = sum(f.stat().st_size for f in old.iterdir() if f.stat().st_nlink == 1)
    assert plan.loc["version", "bytes"] == alone > 0
    before = {f for f in tmp_path.rglob("*") if f.is_file()}
    freed = sum(f.stat().st_size for f in before if not kept.samefile(f.parent))
    clean(plan.reset_index())
    left = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file() and f.parent != kept)
    linked = (kept / "weights.safetensors").stat().st_size
    assert freed - left - linked == plan["bytes"].sum()


def test_at_least_the_newest_stays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least the newest run"):
        plan_cleanup(tmp_path, 0, ())


def test_what_is_young_or_waits_to_be_sent_stays(invent: Invent, tmp_path: Path) -> None:
    runs = [invent({"ttm": [30.0 - day]}, day=day) for day in (1, 2, 3)]
    assert plan_cleanup(tmp_path, keep=1, registered=()).empty  # written just now
    plan = plan_cleanup(tmp_path, keep=1, registered=(), waiting=runs[:1], days=0)
    assert named(plan, "run") == {runs[1].name}
    assert named(plan, "version") == {"2026-03-02T08.00.00.000Z"}


def test_trainings_of_a_sweep_without_a_report_and_bases_of_adapters_stay(
    invent: Invent, tmp_path: Path
) -> None:
    for key in ("of a cell", "its start", "nobody's"):
        save_artifact(invent_artifact("ttm", key), tmp_path / "06_models/trained" / key)
    cells = tmp_path / "06_models/ablation/cells.json/2026-03-01T08.00.00.000Z/cells.json"
    cells.parent.mkdir(parents=True)
    cells.write_text(json.dumps([{"key": "of a cell", "start": "its start"}]))
    invent({"ttm": [30.0]}, day=1)
    invent({"ttm": [20.0]}, day=2)
    [base] = tmp_path.glob("06_models/nocturnal_point/ttm/2026-03-01*/ttm")
    adapter = replace(invent_artifact("ttm", "a"), base={"weights": str(base), "revision": None})
    save_artifact(adapter, tmp_path / "06_models/other")
    plan = plan_cleanup(tmp_path, keep=1, registered=(), days=0)
    assert named(plan, "training") == {"nobody's"}
    assert named(plan, "version") == set()  # the old version of ttm is what the adapter stands on
