"""TS2Vec: its losses are those of the paper, and what is frozen stays so."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models.ts2vec import (
    Network,
    Options,
    TS2Vec,
    build,
    configure,
    draw_crops,
    hierarchical_loss,
    instance_loss,
    middle_crops,
    temporal_loss,
)
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.windows import Batch, Channels
from nocturnal_kedro.training.artifact import save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.loop import pointwise_loss
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.start import start_model
from tests.conftest import SCALER, USUAL

SHORT = Training(epochs=1, steps_per_epoch=3, batch_size=8, warmup_share=0.0)


def make(task: Task, channels: Channels = USUAL, **changes: object) -> TS2Vec:
    torch.manual_seed(0)
    network = Options.presets["tiny"].model_copy(update=changes)
    module = build(configure(network, task, channels), task, channels)
    assert isinstance(module, TS2Vec)
    return module


@pytest.fixture(scope="module")
def batch(data: Data) -> Batch:
    first = int(data.corpus.people["first"].iloc[1])
    return data.gatherer(SCALER, USUAL).gather(torch.arange(first + 700, first + 2300, 400))


# --- the losses, as the paper writes them


def slow_temporal(r: np.ndarray, q: np.ndarray, i: int, t: int) -> float:
    """Equation (1)."""
    below = 0.0
    for s in range(r.shape[1]):
        below += math.exp(r[i, t] @ q[i, s])
        if s != t:
            below += math.exp(r[i, t] @ r[i, s])
    return -math.log(math.exp(r[i, t] @ q[i, t]) / below)


def slow_instance(r: np.ndarray, q: np.ndarray, i: int, t: int) -> float:
    """Equation (2)."""
    below = 0.0
    for j in range(r.shape[0]):
        below += math.exp(r[i, t] @ q[j, t])
        if j != i:
            below += math.exp(r[i, t] @ r[j, t])
    return -math.log(math.exp(r[i, t] @ q[i, t]) / below)


def slow_dual(r: np.ndarray, q: np.ndarray) -> float:
    """Equation (3)."""
    windows, steps, _ = r.shape
    total = 0.0
    for i in range(windows):
        for t in range(steps):
            total += slow_temporal(r, q, i, t) + slow_instance(r, q, i, t)
    return total / (windows * steps)


def slow_hierarchical(r: np.ndarray, q: np.ndarray) -> float:
    """Algorithm 1."""
    total, levels = slow_dual(r, q), 1
    while r.shape[1] > 1:
        pairs = range(0, r.shape[1] - 1, 2)
        r, q = (np.stack([x[:, [t, t + 1]].max(axis=1) for t in pairs], axis=1) for x in (r, q))
        total, levels = total + slow_dual(r, q), levels + 1
    return total / levels


@pytest.fixture(scope="module", params=[(3, 7, 4), (2, 8, 3), (4, 1, 2), (1, 5, 2)], ids=str)
def views(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, *request.param, generator=generator, dtype=torch.float64)
    return first, second


def test_both_contrasts_equal_the_equations(views: tuple[Tensor, Tensor]) -> None:
    r, q = (view.numpy() for view in views)
    windows, steps, _ = r.shape
    for fast, slow in ((temporal_loss, slow_temporal), (instance_loss, slow_instance)):
        expected = [[slow(r, q, i, t) for t in range(steps)] for i in range(windows)]
        np.testing.assert_allclose(fast(*views), expected, rtol=1e-12, atol=1e-14)


def test_hierarchy_equals_the_algorithm(views: tuple[Tensor, Tensor]) -> None:
    loss_B = hierarchical_loss(*views)
    assert loss_B.shape == (len(views[0]),)
    # A share of one half of each is half the equation's sum.
    expected = slow_hierarchical(*(view.numpy() for view in views)) / 2
    assert float(loss_B.mean()) == pytest.approx(expected, rel=1e-12)


def test_losses_equal_values_by_hand() -> None:
    first = torch.tensor([[[1.0], [0.0]], [[2.0], [1.0]]])
    second = torch.tensor([[[1.0], [0.0]], [[1.0], [3.0]]])
    e = math.e
    # window 1, step 1: with the other view's steps 1 * 1 and 1 * 0, with its own step 2 1 * 0
    # window 2, step 2: 1 * 3 is right; 1 * 1 of the other view, 1 * 2 of its own
    temporal = [
        [math.log(e + 1 + 1) - 1, math.log(3)],
        [math.log(e**2 + e**6 + e**2) - 2, math.log(e**3 + e + e**2) - 3],
    ]
    instance = [
        [math.log(e + e + e**2) - 1, math.log(3)],
        [math.log(e**2 + e**2 + e**2) - 2, math.log(e**3 + 1 + 1) - 3],
    ]
    np.testing.assert_allclose(temporal_loss(first, second), temporal, rtol=1e-5)
    np.testing.assert_allclose(instance_loss(first, second), instance, rtol=1e-5)
    # One step is left of two, the larger: r = 1 and 2, r' = 1 and 3; a step alone errs in nothing.
    coarse = [math.log(e + e**3 + e**2) - 1, math.log(e**6 + e**2 + e**2) - 6]
    expected = [(sum(temporal[i] + instance[i]) / 4 + coarse[i] / 2) / 2 for i in (0, 1)]
    np.testing.assert_allclose(hierarchical_loss(first, second), expected, rtol=1e-5)
    # All of one kind.
    expected = [(sum(instance[i]) / 2 + coarse[i]) / 2 for i in (0, 1)]
    np.testing.assert_allclose(hierarchical_loss(first, second, 1.0), expected, rtol=1e-5)


def test_losses_are_finite_where_representations_are_long() -> None:
    first = (torch.randn(2, 4, 8) * 100).requires_grad_()
    loss = hierarchical_loss(first, torch.randn(2, 4, 8) * 100).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()


# --- two views of one window


def test_crops_overlap_and_lie_in_the_window() -> None:
    torch.manual_seed(0)
    drawn = torch.tensor([draw_crops(12) for _ in range(500)])
    first, overlap, overlap_end, last = drawn.T
    for low, high in ((first, overlap), (overlap_end, last)):
        assert (low <= high).all()
    assert (overlap < overlap_end).all()
    assert (first.min(), last.max()) == (0, 12)
    assert (overlap_end - overlap).unique().tolist() == list(range(1, 13))
    assert middle_crops(12) == (0, 3, 9, 12)


class Echo(nn.Module):
    """An encoder whose representation of a step is what was read at it."""

    def forward(self, values_BLC: Tensor, observed_BLC: Tensor, masked_BL: Tensor) -> Tensor:
        return values_BLC


@pytest.mark.parametrize("training", [True, False])
def test_views_are_of_the_same_steps(training: bool, batch: Batch, task: Task) -> None:
    module = make(task)
    module.encoder = Echo()  # type: ignore[assignment]
    contrast = module.pretraining.train(training)
    torch.manual_seed(0)
    lengths = set()
    for _ in range(20):
        first, second = contrast.views(batch)
        assert torch.equal(first, second)
        lengths.add(first.shape[1])
    assert lengths == {256} if not training else len(lengths) > 10


def test_views_differ_by_context_and_mask(batch: Batch, task: Task) -> None:
    for masked in (0.0, 0.5):
        first, second = make(task, masked=masked).pretraining.eval().views(batch)
        assert first.shape == second.shape == (4, 256, 16)
        differs = (first - second).abs().amax(dim=(0, 2)) > 1e-5
        # Unmasked, steps whose context is the same in both crops have the same representation.
        reach = 2 * (1 + 2 + 4 + 8) + 2
        inner = slice(reach, 256 - reach)
        assert differs[:4].any()
        assert differs[-4:].any()
        assert differs[inner].all() if masked else not differs[inner].any()


def test_validation_is_the_same_every_time(batch: Batch, task: Task) -> None:
    contrast = make(task).pretraining
    torch.manual_seed(3)
    drawn = contrast.train()(batch)
    assert not torch.equal(drawn, contrast(batch))
    torch.manual_seed(3)
    assert torch.equal(drawn, contrast(batch))
    contrast.eval()
    state = torch.get_rng_state()
    assert torch.equal(contrast(batch), contrast(batch))
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_unobserved_or_masked_does_not_matter(batch: Batch, task: Task) -> None:
    encoder = make(task).encoder
    values, observed = batch.context_BLC, batch.context_observed_BLC.clone()
    observed[:, 100:200, 0] = False
    changed = values.clone()
    changed[:, 100:200, 0] += 5
    assert torch.equal(encoder(values, observed), encoder(changed, observed))
    masked = torch.zeros(values.shape[:2], dtype=torch.bool)
    masked[:, 300:400] = True
    changed[:, 300:400] += 5
    assert torch.equal(encoder(values, observed, masked), encoder(changed, observed, masked))
    assert not torch.equal(encoder(values, observed), encoder(changed, observed))
    # A step at which nothing is observed is a masked one.
    observed[:, 300:400] = False
    assert torch.equal(encoder(values, observed), encoder(values, observed, masked))


# --- what is learnt


def newest_hours(batch: Batch) -> Batch:
    """The context's last 12 hours: contrast costs the square of its length."""
    return batch._replace(
        context_BLC=batch.context_BLC[:, -144:],
        context_observed_BLC=batch.context_observed_BLC[:, -144:],
    )


def spread_of_people(module: TS2Vec, batch: Batch, person: np.ndarray) -> float:
    """Mean distance between windows of one person, as a share of that between two people's."""
    with torch.no_grad():
        whole_BR = module.encoder(batch.context_BLC, batch.context_observed_BLC).amax(dim=1)
    whole_BR = (whole_BR - whole_BR.mean(dim=0)) / whole_BR.std(dim=0)
    distance = torch.cdist(whole_BR, whole_BR).numpy()
    same = person[:, None] == person
    return float(distance[same & ~np.eye(len(person), dtype=bool)].mean() / distance[~same].mean())


def test_contrast_is_learnt_and_tells_people_apart(data: Data, task: Task) -> None:
    gatherer = data.gatherer(SCALER, USUAL)
    nights = data.night_rows("train")
    unseen, person = gatherer.gather(torch.from_numpy(nights)), gatherer.person_of(nights)
    unseen = newest_hours(unseen)
    rows = data.rows_around_anchor(3.0)
    rows = rows[np.abs(rows[:, None] - nights).min(axis=1) > 12]
    module = make(task)
    contrast = module.pretraining
    contrast.requires_grad_(True)
    before = contrast.eval()(unseen).mean().item(), spread_of_people(module, unseen, person)
    optimizer = torch.optim.AdamW(contrast.parameters(), lr=5e-3)
    draw = np.random.default_rng(0)
    contrast.train()
    for _ in range(30):
        part = torch.from_numpy(draw.choice(rows, 16, replace=False))
        optimizer.zero_grad()
        contrast(newest_hours(gatherer.gather(part))).mean().backward()
        optimizer.step()
    after = contrast.eval()(unseen).mean().item(), spread_of_people(module, unseen, person)
    assert after[0] < 0.95 * before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_leaves_a_frozen_encoder_alone(
    frozen: bool, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder as it is after each stage: what the head's stage begins and ends with."""
    from nocturnal_kedro.training import learn

    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    whole_train = learn.train

    def watched(module: nn.Module, *args: object, **more: object) -> object:
        begin = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        trained = whole_train(module, *args, **more)  # type: ignore[arg-type]
        seen.append((begin, trained.state))
        return trained

    monkeypatch.setattr(learn, "train", watched)
    artifact = fit_model("ts2vec", {"preset": "tiny", "network": {"frozen": frozen}}, data, SHORT)
    (drawn, contrasted), (begun, ended) = seen
    names = [name for name in begun if name.startswith("encoder.")]
    assert names == list(drawn)  # nothing but the encoder is trained by contrast
    assert all(torch.equal(begun[name], contrasted[name]) for name in names)
    assert not any(torch.equal(drawn[name], contrasted[name]) for name in names)
    assert [torch.equal(begun[name], ended[name]) for name in names] == [frozen] * len(names)
    assert not torch.equal(begun["head.hidden.weight"], ended["head.hidden.weight"])
    # All of it has been trained and is kept, under one name each.
    assert set(artifact.state) == set(begun)
    assert artifact.record["trained_parameters"] == artifact.record["parameters"]
    assert list(artifact.log["stage"]) == ["representation", "forecast"]


def test_a_fitted_model_is_tuned_further(data: Data, tmp_path: Path) -> None:
    tiny = {"preset": "tiny", "network": {"frozen": True}}
    first = fit_model("ts2vec", tiny, data, SHORT)
    save_artifact(first, tmp_path / "fitted")
    given = {"strategy": "fine_tune", "weights": str(tmp_path / "fitted")}
    further = fit_model("ts2vec", given, data, SHORT)
    # Its encoder is frozen, and not stored a second time.
    assert {name.split(".")[0] for name in further.state} == {"head"}
    adapted = fit_model("ts2vec", given | {"lora": {"rank": 2}}, data, SHORT)
    assert all(".lora_" in name for name in adapted.state)


def test_weights_must_be_of_a_fitted_model(task: Task, tmp_path: Path) -> None:
    options = Options(strategy="fine_tune", weights=str(tmp_path))
    with pytest.raises(InputError, match="no published checkpoints of 'ts2vec'"):
        start_model("ts2vec", options, task)


# --- forecasts


def test_released_is_the_papers_size(task: Task) -> None:
    network = Options(preset="released").network
    assert network == Network(hidden=64, blocks=10, representation=320, head=256)
    assert network is not None
    assert (network.masked, network.instance_share) == (0.5, 0.5)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("covariate", COVARIATES)
def test_every_covariate_moves_the_forecast(
    covariate: str, frozen: bool, data: Data, task: Task
) -> None:
    channels = Channels((covariate,))
    first = int(data.corpus.people["first"].iloc[1])
    batch = data.gatherer(SCALER, channels).gather(torch.tensor([first + 700, first + 900]))
    batch = batch._replace(context_observed_BLC=torch.ones_like(batch.context_observed_BLC))
    module = make(task, channels, frozen=frozen).eval()
    usual = module(batch).quantiles_BHQ
    for part in ("context_BLC", "future_BHF"):
        values = getattr(batch, part)
        for channel in range(part == "context_BLC", values.shape[-1]):
            changed = values.clone()
            changed[..., channel] += torch.linspace(-2, 2, values.shape[1])
            moved = module(batch._replace(**{part: changed})).quantiles_BHQ
            assert (moved - usual).abs().amax(dim=(1, 2)).min() > 1e-5


def test_forecasts_are_sound(batch: Batch, task: Task) -> None:
    module = make(task).eval()
    point, quantiles, _ = module(batch)
    assert quantiles.shape == (4, 96, 21)
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.equal(point, quantiles[..., 10])
    other = batch._replace(target_BH=torch.randn_like(batch.target_BH))
    assert torch.equal(module(other).quantiles_BHQ, quantiles)
    for one in range(4):
        alone = module(Batch(*(part[one : one + 1] for part in batch))).quantiles_BHQ
        np.testing.assert_allclose(alone.detach(), quantiles[one : one + 1].detach(), atol=2e-5)


def test_gaps_are_legal(batch: Batch, task: Task) -> None:
    """No carbohydrates at all, and a sensor that reads every 15 minutes."""
    context, future = batch.context_BLC.clone(), batch.future_BHF.clone()
    seen, known = batch.context_observed_BLC.clone(), batch.future_observed_BHF.clone()
    carbs, carbs_ahead = USUAL.context.index("cob_g"), USUAL.future.index("cob_g")
    context[..., carbs], seen[..., carbs] = 0, False
    future[..., carbs_ahead], known[..., carbs_ahead] = 0, False
    seen[:, torch.arange(512) % 3 > 0, 0] = False
    blind = batch._replace(
        context_BLC=context, context_observed_BLC=seen, future_BHF=future, future_observed_BHF=known
    )
    module = make(task, frozen=False)
    module.pretraining(blind).mean().backward()
    pointwise_loss(module(blind), blind).mean().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


@pytest.mark.parametrize("frozen", [True, False])
def test_the_loss_falls_on_one_batch(frozen: bool, batch: Batch, task: Task) -> None:
    module = make(task, frozen=frozen)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = (pointwise_loss(module(batch), batch) * batch.target_observed_BH).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
