"""The tables as Markdown say what the frames say, and no more."""

import pandas as pd
import pytest

from nocturnal_kedro.report.markdown import leaderboard_as_markdown, sweep_as_markdown

BOARD = {
    "source": "all", "split": "temporal", "model": ["ttm", "last_value", "climatology"],
    "nights": 148, "subjects": 21,
    "rmse_mg_dl": [30.46, 49.6, 34.8], "rmse_low_mg_dl": [28.1, 45.2, 31.0],
    "rmse_high_mg_dl": [32.9, 54.1, 38.7], "mae_mg_dl": [23.2, 38.1, 27.3],
    "crps_mg_dl": [16.5, 27.9, 19.1], "crps_low_mg_dl": [15.2, 24.9, 17.0],
    "crps_high_mg_dl": [17.8, 30.4, 21.2], "coverage_80_pct": [79.6, 81.2, 75.1],
    "skill_vs_last_value": [0.386, 0.0, 0.298], "tied_with_best": [True, False, True],
}  # fmt: skip
SUMMARY = {
    "split": "patient", "group": ["all", "all", "insulin known"], "question": "covariates",
    "cell": ["glucose", "+ insulin", "+ insulin"], "model": "ttm", "people": [4, 4, 3],
    "nights": [158, 158, 120], "rmse_mg_dl": [33.1, 32.2, 32.04],
    "rmse_low_mg_dl": [29.0, 28.4, 28.0], "rmse_high_mg_dl": [37.2, 36.1, 36.2],
    "crps_mg_dl": 18.0, "crps_low_mg_dl": 16.0,
    "crps_high_mg_dl": 20.0, "against": [None, "glucose", "glucose"],
    "difference_mg_dl": [float("nan"), -0.93, -1.2],
    "difference_low_mg_dl": [float("nan"), -1.6, -2.0],
    "difference_high_mg_dl": [float("nan"), -0.21, -0.4], "apart": [False, True, False],
    "auroc": [0.7, 0.75, float("nan")], "auroc_low": [0.6, 0.66, float("nan")],
    "auroc_high": [0.8, 0.84, float("nan")],
}  # fmt: skip


def rows_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_leaderboard_as_markdown() -> None:
    told = leaderboard_as_markdown(pd.DataFrame(BOARD), "night")
    assert told.startswith("**Everybody else, later days** (148 nights of 21 people)")
    head, rule, *rows = rows_of(told)
    assert len({len(row) for row in (head, rule, *rows)}) == 1
    assert rows[0] == [
        "ttm", "30.5 (28.1 to 32.9)", "23.2", "16.5 (15.2 to 17.8)", "80 %", "0.39", "best",
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["best", "", "tied"]


def test_few_people_are_tied_with_nobody_and_have_no_interval() -> None:
    alone = pd.DataFrame(BOARD).assign(subjects=1, rmse_low_mg_dl=30.46, rmse_high_mg_dl=30.46)
    rows = rows_of(leaderboard_as_markdown(alone.iloc[:1], "meal"))
    assert rows[2][1] == "30.5 (too few people)"
    board = pd.DataFrame(BOARD).assign(subjects=5)
    assert [row[-1] for row in rows_of(leaderboard_as_markdown(board, "night"))[2:]] == [
        "best", "", "",
    ]  # fmt: skip


@pytest.mark.parametrize("saved", [False, True])
def test_a_sweep_as_markdown(saved: bool, tmp_path: object) -> None:
    summary = pd.DataFrame(SUMMARY)
    if saved:  # as the catalog reads it again
        file = f"{tmp_path}/summary.csv"
        summary.to_csv(file, index=False)
        summary = pd.read_csv(file, keep_default_na=False, na_values=[""])
    told = sweep_as_markdown(summary)
    assert told.count("**People never seen; nights: ") == 2
    _, _, first, second, *_ = rows_of(told)
    assert first[-4:] == ["0.70 (0.60 to 0.80)", "", "", ""]
    assert second[-3:] == ["glucose", "-0.93 (-1.60 to -0.21)", "yes"]
