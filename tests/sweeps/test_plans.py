"""Of every cell of every sweep: nobody and no night that is tested on has been learnt from."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.metrics.sweeps import EVERY_NIGHT, OWN_GROUP
from nocturnal_kedro.series.schema import SLOT
from nocturnal_kedro.sweeps import plan_cells
from nocturnal_kedro.training.cells import Cell, Grounds
from tests.sweeps.invented import assert_sound, grounds_of, nights_tested

ADAPTED = {"days": (3, 6), "test_days": 4, "validation_days": 3, "epochs": 1}
SWEEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "ablation": ("ablation", {"context_steps": (288, 400)}),
    "personalization": ("personalization", ADAPTED),
    "personalization in folds": ("personalization", ADAPTED | {"folds": 2}),
    "transfer_learning": ("transfer_learning", {"few_days": 3}),
    "night_anchors": ("night_anchors", {"bedtimes": {"c": "22:00"}}),
}
every_sweep = pytest.mark.parametrize("sweep", SWEEPS)


@pytest.fixture(scope="module")
def planned(grounds: Grounds) -> dict[str, list[Cell]]:
    return {sweep: plan_cells(name, grounds, given) for sweep, (name, given) in SWEEPS.items()}


def learnt_from(cell: Cell) -> Iterator[tuple[str, pd.Timestamp, pd.Timestamp]]:
    """Whose days it learns from or is chosen by, and all that it starts from did."""
    if cell.start:
        yield from learnt_from(cell.start)
    if not cell.zero_shot:
        for row in cell.data.splits.itertuples():
            if row.split in ("train", "validation"):
                yield f"{row.source}/{row.subject}", row.start, row.end


@every_sweep
def test_nobody_tested_is_learnt_from(sweep: str, planned: dict[str, list[Cell]]) -> None:
    checked = set()
    for cell in planned[sweep]:
        learnt, seen = list(learnt_from(cell)), set()
        what = (*learnt, id(cell.on_test), cell.tested_people)
        if what in checked:  # of another seed or manner
            continue
        checked.add(what)
        assert learnt
        for night in nights_tested(cell.on_test).itertuples():
            person = f"{night.source}/{night.subject}"
            if cell.tested_people is not None and person not in cell.tested_people:
                continue
            first = night.origin + SLOT
            last = night.origin + cell.on_test.task.horizon_steps * SLOT
            for whom, start, end in learnt:
                assert whom != person or last < start or first >= end, f"{cell}: {person}, {first}"
            seen.add(person)
        assert seen, cell
        # What it is trained on is what its record will tell, and nothing beside it.
        rows = cell.data.rows_around_anchor(cell.training.anchor_hours)
        people = cell.data.corpus.people.iloc[cell.data.corpus.person_of(rows)]
        times = people["start"].to_numpy() + (rows - people["first"].to_numpy()) * SLOT
        whose = (people["source"] + "/" + people["subject"]).to_numpy()
        if cell.zero_shot:
            continue
        for person in set(whose):
            own = times[whose == person]
            assert any(
                whom == person and start <= own.min() and own.max() < end
                for whom, start, end in learnt
            ), f"{cell}: {person}"


@every_sweep
def test_cells_are_named_once_and_compared_with_what_is_there(
    sweep: str, planned: dict[str, list[Cell]], grounds: Grounds
) -> None:
    name, given = SWEEPS[sweep]
    groups = plugins.load("sweep", name).groups(grounds, plugins.options("sweep", name, given))
    named = {EVERY_NIGHT, *groups["group"]}
    assert_sound(planned[sweep], {OWN_GROUP} if named & {c.name for c in planned[sweep]} else set())
    nights = pd.concat(
        [
            nights_tested(data)
            for data in {id(c.on_test): c.on_test for c in planned[sweep]}.values()
        ]
    )
    of_groups = groups[["source", "subject", "origin"]].drop_duplicates()
    assert len(of_groups.merge(nights.drop_duplicates())) == len(of_groups)
    assert {cell.seed for cell in planned[sweep]} == {None, 3, 4}
    assert {cell.training.seed for cell in planned[sweep] if cell.seed == 4} == {4}
    for cell in planned[sweep]:
        assert cell.training.seed == (cell.seed or grounds.training.seed)
        assert (cell.seed is None) == (cell.model in grounds.baselines)
    for data in {id(cell.data): cell.data for cell in planned[sweep]}.values():
        data.require_frozen()


@every_sweep
def test_the_same_parameters_give_the_same_cells(
    sweep: str, planned: dict[str, list[Cell]], grounds: Grounds
) -> None:
    name, given = SWEEPS[sweep]
    again = plan_cells(name, grounds, given)
    assert [cell.identity for cell in again] == [cell.identity for cell in planned[sweep]]


@every_sweep
def test_a_service_has_no_variants(sweep: str, grounds: Grounds) -> None:
    name, given = SWEEPS[sweep]
    asked = grounds_of(grounds.data, models={"timegpt": {}})
    with pytest.raises(InputError, match=r"model 'timegpt' is a service.*Leave it out of 'models'"):
        plan_cells(name, asked, given)


@pytest.mark.parametrize(
    ("sweep", "given", "told"),
    [
        ("ablation", {"questions": "covariats"}, "unknown question of the ablation 'covariats'"),
        ("ablation", {"day_shares": [0]}, "day_shares"),
        ("personalization", {"manners": "fully"}, "unknown manner of personalization 'fully'"),
        ("personalization", {"days": []}, "days"),
        ("personalization", {"folds": 13} | ADAPTED, "folds is 13, and there are 12 people"),
        ("personalization", {"test_days": 40}, "nobody who is held out has 3 days to adapt on"),
        ("transfer_learning", {"shots": "many"}, "unknown shot of transfer_learning 'many'"),
        ("night_anchors", {"sliding_hours": [5, 5]}, "'sliding_hours' begin when they end"),
        ("night_anchors", {"every": 3}, "every"),
    ],
)
def test_what_cannot_be_varied_is_told(
    sweep: str, given: dict[str, Any], told: str, grounds: Grounds
) -> None:
    with pytest.raises(InputError, match=told):
        plan_cells(sweep, grounds, given)
