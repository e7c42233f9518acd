"""Sweeps from raw files to the report: whole, in parts, cut off and gone on, and misused."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.run_folder import RUNS, run_folders
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.registry.tracking import Tracking, send_all
from tests.conftest import PROJECT, SMALL, SWEPT, TRAINED, Run, Sweep, invent_readings

pytestmark = pytest.mark.slow

BASELINES = plugins.names("baseline")
SEEDS = [3, 4]
AFTER_DATA = ["training", "evaluation", "reporting"]
# Two questions of the ablation, for one model and seed: as on the command line, and in Python.
ASKED = {"models": "tsmixer", "seeds": "3", "ablation": {"questions": "covariates context"}}
WORDS = ["models=tsmixer", "seeds=3", "ablation.questions=covariates context"]


def kedro(data_root: Path, *given: str, tags: list[str] | None = None) -> subprocess.Popen[str]:
    """The ablation on the small cohort, in a process that can be killed."""
    small = [f"{path}={value}" for path, value in flat(SMALL).items()]
    words = [str(Path(sys.executable).parent / "kedro"), "run", "--pipelines=ablation"]
    words += [f"--tags={','.join(tags)}"] if tags else []
    return subprocess.Popen(
        [*words, f"--params={','.join([f'data_root={data_root}', *small, *given])}"],
        cwd=PROJECT,
        # As many threads as here: sums over another number of them round otherwise.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def kept(data_root: Path) -> dict[str, tuple[int, str]]:
    """When each file of what is whole was written, and its hash: artifacts and forecasts."""
    trained = (data_root / "06_models/trained").glob("*/*")
    whole = [file for file in trained if "." not in file.parent.name]
    whole += [
        f for f in (data_root / "07_model_output").glob("*/forecasted/*") if "." not in f.name
    ]
    return {
        str(file.relative_to(data_root)): (
            file.stat().st_mtime_ns,
            sha256(file.read_bytes()).hexdigest(),
        )
        for file in whole
    }


def made(data_root: Path, name: str) -> Path:
    """The newest version of a table of the ablation."""
    return sorted(data_root.glob(f"0*/ablation/{name}/*/{name}"))[-1]


def require_equal(data_root: Path, expected: Path) -> None:
    """The same scores by night to the last bit, and the same summary to the last byte."""
    scores, others = (
        pd.read_parquet(made(root, "cell_scores.parquet")) for root in (data_root, expected)
    )
    pd.testing.assert_frame_equal(scores, others, check_exact=True)
    summary = made(data_root, "summary.csv").read_bytes()
    assert summary == made(expected, "summary.csv").read_bytes()


def require_nothing_trained(data_root: Path, messages: list[str]) -> None:
    """What the log of the last run says of every cell: that its model was there."""
    cells = json.loads(made(data_root, "cells.json").read_text())
    assert sum("was trained before with the same data" in line for line in messages) == len(cells)


def without(data_root: Path, *folders: str, of: Path) -> Path:
    """A copy of a data_root without what is in these folders."""
    shutil.copytree(of, data_root, ignore=shutil.ignore_patterns(*folders))
    return data_root


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data_root of a part of the ablation, as it is asked for on the command line."""
    data_root = tmp_path_factory.mktemp("asked")
    running = kedro(data_root, *WORDS)
    told, _ = running.communicate()
    assert running.returncode == 0, told
    assert re.search(r"Report: .*ablation/report\.html", told)
    return data_root


@pytest.mark.parametrize("name", sorted(SWEPT))
def test_every_sweep_tells_of_what_was_asked_for_and_no_more(name: str, sweep: Sweep) -> None:
    catalog = sweep(name)[1].catalog
    models, summary = SWEPT[name]["models"].split(), catalog.load(f"{name}.summary")
    assert set(summary["model"]) == {*models, *BASELINES}
    is_baseline = summary["model"].isin(BASELINES)
    assert (summary["question"] == "baselines").equals(is_baseline)
    assert (summary.loc[~is_baseline, "seeds"] == len(SEEDS)).all()
    assert (summary.loc[is_baseline, "seeds"] == 1).all()
    scores = catalog.load(f"{name}.cell_scores")
    assert set(scores["experiment"]) == {name}
    trained = scores[scores["question"] != "baselines"]
    by_cell = trained.groupby(["question", "cell", "model"])["seed"]
    assert by_cell.agg(lambda seeds: sorted(set(seeds)) == SEEDS).all()
    assert scores.loc[scores["question"] == "baselines", "seed"].isna().all()
    by_person = catalog.load(f"{name}.by_person")
    assert set(by_person["model"]) == {*models, *BASELINES}

    # Parameters of the other models stand further below, with how the run was made.
    page = catalog.load(f"{name}.report").split("</head>")[1].split('<section id="audit">')[0]
    for other in set(TRAINED) - set(models):
        assert not re.search(rf"\b{other}\b", page), other
    for model in (*models, *BASELINES):
        assert f">{model}</td>" in page
    figures, table = page.split('<section id="variants">')
    assert all(f"<td>{question}</td>" in table for question in summary["question"].unique())
    assert figures.count("<figure") >= 1


@pytest.mark.parametrize("name", sorted(SWEPT))
def test_every_row_has_its_intervals(name: str, sweep: Sweep) -> None:
    summary = sweep(name)[1].catalog.load(f"{name}.summary")
    assert set(summary["split"]) <= {"patient", "temporal"}
    for error in ("rmse", "crps"):
        told = summary[[f"{error}_low_mg_dl", f"{error}_mg_dl", f"{error}_high_mg_dl"]].to_numpy()
        assert np.isfinite(told).all()
        assert (np.diff(told, axis=1) >= -1e-9).all()
    # One person who was forecast by one baseline can only be drawn again.
    alone = (summary["people"] == 1) & (summary["seeds"] == 1)
    assert (summary.loc[alone, "rmse_low_mg_dl"] == summary.loc[alone, "rmse_high_mg_dl"]).all()
    assert (summary.loc[~alone, "rmse_low_mg_dl"] < summary.loc[~alone, "rmse_high_mg_dl"]).all()
    compared = summary["against"].notna() & (summary["against"] != "")
    assert compared.any()
    difference = summary[["difference_low_mg_dl", "difference_mg_dl", "difference_high_mg_dl"]]
    assert np.isfinite(difference[compared].to_numpy()).all()
    assert (np.diff(difference[compared].to_numpy(), axis=1) >= -1e-9).all()
    assert difference[~compared].isna().all(axis=None)
    assert (summary.loc[compared, ["paired_people", "paired_nights"]] > 0).all(axis=None)
    assert not summary.loc[summary["people"] < 6, "apart"].any()


def test_a_sweeps_numbers_are_those_of_its_scores_by_night(sweep: Sweep) -> None:
    """The RMSE of each variant and the paired difference, from the saved scores alone."""
    catalog = sweep("ablation")[1].catalog
    scores = catalog.load("ablation.cell_scores")
    summary = catalog.load("ablation.summary").query("group == 'all'")

    def of_cell(row: Any, cell: str) -> float:
        own = scores[(scores["split"] == row.split) & (scores["cell"] == cell)]
        own = own[(own["question"] == row.question) & (own["model"] == row.model)]
        squared = (own["mse"] * own["points"]).groupby([own["seed"].fillna(0), own["subject"]])
        points = own["points"].groupby([own["seed"].fillna(0), own["subject"]])
        return float(np.sqrt(squared.sum() / points.sum()).groupby("subject").mean().mean())

    for row in summary.itertuples():
        assert row.rmse_mg_dl == pytest.approx(of_cell(row, row.cell), abs=1e-9)
        if row.against == row.against:
            expected = row.rmse_mg_dl - of_cell(row, row.against)
            assert row.difference_mg_dl == pytest.approx(expected, abs=1e-9)


def test_the_anchors_of_a_night_stand_side_by_side(sweep: Sweep) -> None:
    summary = sweep("night_anchors")[1].catalog.load("night_anchors.summary")
    nights = summary.query("model == 'ttm' and split == 'patient'").set_index("group")["nights"]
    anchors = ["from midnight", "from bedtime", "from every hour"]
    assert list(nights.index)[:4] == ["all", *anchors]
    assert all(group.startswith("from ") and group.endswith(":00") for group in nights.index[4:])
    assert nights["from every hour"] > nights["from midnight"] == nights["from bedtime"] > 0
    assert nights["from 00:00"] >= nights["from midnight"]  # not every night has a bedtime
    assert max(nights.drop("all")) <= nights["all"]


def test_the_command_line_asks_for_a_part(asked: Path) -> None:
    summary = pd.read_csv(made(asked, "summary.csv"))
    assert set(summary["question"]) == {"baselines", "covariates", "context"}
    assert set(summary["model"]) == {"tsmixer", *BASELINES}
    scores = pd.read_parquet(made(asked, "cell_scores.parquet"))
    assert scores["seed"].dropna().unique().tolist() == [3]
    # One training stands for the last rung of the covariates and the usual context.
    cells = summary.drop_duplicates(["question", "cell"])
    artifacts = list((asked / "06_models/trained").iterdir())
    assert len(artifacts) == len(cells) - 1


def test_a_killed_sweep_goes_on_and_comes_to_the_same(
    asked: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed while models are trained, and again while cells are scored."""
    data_root = without(tmp_path / "cut", "06_models", "07_model_output", "ablation", of=asked)
    whole: dict[str, tuple[int, str]] = {}
    for room, finished in (
        ("06_models/trained", len(BASELINES) + 2),
        ("07_model_output/ablation/forecasted", 3),
    ):
        running = kedro(data_root, *WORDS, tags=AFTER_DATA)
        while sum("." not in path.name for path in (data_root / room).glob("*")) < finished:
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert running.returncode == -signal.SIGKILL
        now = kept(data_root)
        assert whole.items() <= now.items()
        assert len(now) > len(whole)
        whole = now
    assert not list(data_root.rglob("summary.csv"))
    caplog.set_level(logging.INFO, "nocturnal_kedro")
    caplog.clear()
    run(data_root, pipeline="ablation", tags=AFTER_DATA, **ASKED)
    assert whole.items() < kept(data_root).items()
    require_nothing_trained(data_root, caplog.messages)
    require_equal(data_root, asked)


def test_shares_of_a_sweep_are_joined_without_a_training(
    asked: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_root = without(tmp_path / "whole", "06_models", "07_model_output", "ablation", of=asked)
    (data_root / "06_models/trained").mkdir(parents=True)
    for number in (1, 2, 3):
        part = tmp_path / str(number)
        (part / "06_models").mkdir(parents=True)
        for shared in ("03_primary", "05_model_input", "06_models/trained"):
            (part / shared).symlink_to(data_root / shared)
        before = kept(data_root)
        given = {"share": f"{number}/3", **ASKED}
        run(part, pipeline="ablation", tags=["training"], **given)
        assert before.items() < kept(data_root).items()
    with pytest.raises(Exception, match=r"cells were trained, and these parameters give \d+, or"):
        run(part, pipeline="ablation", tags=["evaluation"], **ASKED)
    before = kept(data_root)
    caplog.set_level(logging.INFO, "nocturnal_kedro")
    caplog.clear()
    run(data_root, pipeline="ablation", tags=AFTER_DATA, **ASKED)
    require_nothing_trained(data_root, caplog.messages)
    now = kept(data_root)
    assert {name for name in now if name.startswith("06")} == set(before)
    assert before.items() < now.items()
    require_equal(data_root, asked)


@pytest.mark.parametrize(
    ("sweep_name", "given", "message"),
    [
        (
            "ablation", {"ablation": {"questions": "covariate"}},
            r"unknown question of the ablation 'covariate'.*Did you mean 'covariates'\?",
        ),
        (
            "personalization", {"personalization": {"manners": "lorra"}},
            r"unknown manner of personalization 'lorra'.*Did you mean 'lora'\?",
        ),
        (
            "transfer_learning", {"transfer_learning": {"shots": "few-shots"}},
            r"unknown shot of transfer_learning 'few-shots'.*Did you mean 'few-shot'\?",
        ),
        ("ablation", {"share": "0/3"}, r"'share' is '0/3'; it is K/N .*such as 1/4"),
        ("ablation", {"share": "4/3"}, r"'share' is '4/3'; it is K/N .*such as 1/4"),
        ("ablation", {"seeds": "-1"}, r"'seeds' is '?-1'?; a seed is 0 or more"),
        ("ablation", {"seeds": "a"}, r"'seeds' is 'a'; it holds whole numbers, e\.g\."),
        (
            "transfer_learning", {},
            r"there is one group of people alone, 'simulated', .*Give several sources",
        ),
        (
            "personalization", {},
            r"nobody who is held out has 3 days to adapt on, 7 for validation and 14 to test on",
        ),
        ("ablation", {"models": "timegpt"}, "model 'timegpt' is a service"),
        (
            "ablation", {"ablation": {"question": "days"}},
            r"options of sweep 'ablation': 'question' Extra.*Allowed: questions, context_steps",
        ),
        (
            "prandial", {"prandial": {"tusk": {}}},
            r"unknown parameter of prandial 'tusk'.*Did you mean 'task'\?",
        ),
        (
            "prandial", {"prandial": {"task": {"meal": 10}}},
            r"parameter 'prandial\.task': 'meal' Extra.*Allowed: .*meal_g",
        ),
        (
            "ablation", {"task": {"meal_g": 20}},
            "'meal_g' is of anchor meal, and the anchor is midnight: leave it out",
        ),
    ],
)  # fmt: skip
def test_what_no_sweep_could_use_is_one_clear_error(
    sweep_name: str, given: dict[str, Any], message: str, asked: Path, run: Run
) -> None:
    before = kept(asked)
    with pytest.raises(Exception, match=message) as raised:
        run(asked, pipeline=sweep_name, tags=["training"], **{"models": "tsmixer", **given})
    errors = [raised.value]
    while errors[-1].__cause__:
        errors.append(errors[-1].__cause__)
    assert any(isinstance(error, InputError) for error in errors)
    assert kept(asked) == before


def test_other_variants_than_were_trained_are_not_scored(asked: Path, run: Run) -> None:
    other = {**ASKED, "ablation": {"questions": "covariates"}}
    with pytest.raises(
        Exception, match=r"\d+ cells were trained, .* give \d+, or others\. Run training again"
    ):
        run(asked, pipeline="ablation", tags=["evaluation"], **other)


def test_without_meals_on_record_there_is_nothing_to_ask_after(run: Run, tmp_path: Path) -> None:
    readings = invent_readings(people=8, days=6).frame
    (tmp_path / "raw" / "tidy").mkdir(parents=True)
    readings = readings.rename(columns={"glucose_mg_dl": "glucose"})
    readings[["subject", "time", "glucose"]].to_csv(tmp_path / "raw/tidy/mine.csv", index=False)
    with pytest.raises(Exception, match="no meals are in the data: bedtimes and meals are found"):
        run(
            tmp_path / "data", pipeline="prandial", sources="tidy", models="tsmixer",
            raw_root=str(tmp_path / "raw"), source_options={},
        )  # fmt: skip
    assert not list(tmp_path.rglob("origins.csv"))


def test_a_sweep_leaves_a_folder_of_its_cells(sweep: Sweep) -> None:
    data_root, _ = sweep("ablation")
    [folder] = [f for f in run_folders(data_root / RUNS) if f.name.startswith("ablation_tsmixer_")]
    told = json.loads((folder / "metadata.json").read_text())
    names = [name for name in told["models"] if name.startswith("context: ")]
    assert any(name.endswith(", tsmixer, seed 3") for name in names)
    assert all((data_root / model["artifact"]).is_dir() for model in told["models"].values())
    people = pd.read_csv(folder / "results/detailed_results.csv")
    assert "validation" in set(people["split"])
    assert "Tracking store: sqlite" in send_all(data_root, Tracking())
    assert Registry(default_uri(data_root)).find_models().empty  # variants are not for use
