"""Unchanged input is not made again, changed input invalidates, an old run can be had again."""

from pathlib import Path

import pandas as pd
import pytest
from kedro.framework.context import KedroContext

from nocturnal_kedro import plugins
from tests.conftest import Run

pytestmark = pytest.mark.slow

SHARED = ("corpus", "splits", "origins", "outcomes", "audit", "tally", "quality", "made_from")


def board_of(context: KedroContext) -> pd.DataFrame:
    return context.catalog.load("nocturnal_point.leaderboard")


def versions_of(context: KedroContext) -> pd.DataFrame:
    return context.catalog.load("data_versions")


def parts_in(data_root: Path) -> dict[str, int]:
    """When each prepared part was made, in ns."""
    folders = (data_root / "02_intermediate" / "prepared").iterdir()
    return {folder.name: folder.stat().st_mtime_ns for folder in folders if folder.is_dir()}


def test_an_old_run_is_had_again_and_every_version_tells_what_it_is(
    run: Run, tmp_path: Path
) -> None:
    context = run(tmp_path, models="ttm")
    old = board_of(context)  # now: later the catalog reads the newest
    assert versions_of(context)["models"].str.count(r"\S+").tolist() == [
        1 + len(plugins.names("baseline"))
    ]
    parts = parts_in(tmp_path)

    context = run(tmp_path, models="ttm", splits={"seed": 3}, grid={"bolus_highest_u_day": 90})
    other = board_of(context)
    assert not old.equals(other)
    assert parts_in(tmp_path).items() > parts.items()  # made beside the others
    table = versions_of(context)
    first, second = table["version"]
    assert table["same_as"].tolist() == [first, first]  # the corpus itself did not change
    assert table["data"].nunique() == 2  # who is held out did
    assert table["sources"].tolist() == ["simulated", "simulated"]
    assert table["people"].tolist() == [8, 8]
    assert all(first in name for name in table["models"][0].split())

    for version, board in ((first, old), (second, other)):
        again = run(
            tmp_path, pipeline="training,evaluation,reporting", models="ttm",
            load_versions=dict.fromkeys(SHARED, version),
        )  # fmt: skip
        pd.testing.assert_frame_equal(board_of(again), board)


def test_unchanged_input_is_not_made_again(run: Run, finished_copy: Path) -> None:
    before = parts_in(finished_copy)
    context = run(finished_copy, pipeline="data_processing")
    assert parts_in(finished_copy) == before
    values = sorted(finished_copy.glob("05_model_input/corpus/*/corpus/values_TC.npy"))
    assert len(values) == 2
    assert values[0].samefile(values[1])
    assert versions_of(context)["same_as"].nunique() == 1


def test_a_model_of_other_data_is_refused_also_by_version(run: Run, finished_copy: Path) -> None:
    [first] = versions_of(run(finished_copy, pipeline="reporting", models="ttm"))["version"]
    run(
        finished_copy,
        pipeline="data_processing",
        source_options={"simulated": {"subjects": 9, "days": 14}},
    )
    with pytest.raises(Exception, match="may have seen what it would be tested on"):
        run(finished_copy, pipeline="evaluation", models="ttm")
    run(
        finished_copy, pipeline="evaluation", models="ttm",
        load_versions=dict.fromkeys(("corpus", "splits", "origins"), first),
    )  # fmt: skip


def test_an_audit_that_fails_leaves_nothing_to_train_on(
    run: Run, finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nocturnal_kedro.series import audit

    checks = {"nothing is wrong": lambda data: (1, "everything is")}
    with monkeypatch.context() as patched:
        patched.setattr(audit, "CHECKS", checks)
        with pytest.raises(Exception, match="nothing is wrong: NO, everything is"):
            run(finished_copy, pipeline="data_processing", splits={"seed": 5})
    with pytest.raises(Exception, match="not those that passed the leak audit"):
        run(finished_copy, pipeline="training", models="ttm")
