"""One contract for every model in the folder, and for every way that it starts."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import ModelOptions
from nocturnal_kedro.series.covariates import COVARIATES
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels
from nocturnal_kedro.training.artifact import Artifact, load_artifact, save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.forecast import answer_with, forecast
from nocturnal_kedro.training.loop import checkpoint_gradients, pointwise_loss
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.start import Start, restore_model, start_model
from tests.conftest import SCALER

MODELS = [name for name in plugins.names("model") if not plugins.is_service(name)]
SHORT = Training(epochs=1, steps_per_epoch=3, batch_size=8)

# Those whose networks take seconds where the others take tenths.
HEAVY = {"chronos_t5", "timellm"}
every_model = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in MODELS],
)


def record(name: str) -> type[ModelOptions]:
    return plugins.load("model", name).Options


def build(name: str, task: Task, **given: Any) -> Start:
    torch.manual_seed(0)
    options: Any = plugins.options("model", name, {"preset": "tiny"} | given)
    return start_model(name, options, task)


def windows(data: Data, covariates: tuple[str, ...], count: int = 4) -> Batch:
    first = int(data.corpus.people["first"].iloc[1])
    rows = torch.arange(first + 700, first + 700 + 400 * count, 400)
    return data.gatherer(SCALER, Channels(covariates)).gather(rows)


def started(name: str, data: Data, **given: Any) -> tuple[torch.nn.Module, Batch, Channels]:
    start = build(name, data.task, **given)
    return start.module, windows(data, start.channels.covariates), start.channels


class Fitted(dict[str, Path]):
    """Each model, fitted from scratch for a moment and saved, when it is first asked for."""

    def __init__(self, data: Data, root: Path) -> None:
        super().__init__()
        self.data, self.root = data, root

    def __missing__(self, name: str) -> Path:
        self[name] = self.root / name
        save_artifact(fit_model(name, {"preset": "tiny"}, self.data, SHORT), self[name])
        return self[name]


@pytest.fixture(scope="module")
def folders(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Fitted(data, tmp_path_factory.mktemp("fitted"))


def points(artifact: Artifact, data: Data) -> np.ndarray:
    return answer_with(artifact, data, data.night_rows("validation"))[0].point_NH


def loss_of(artifact: Artifact, data: Data) -> np.ndarray:
    """Of each window; a point's alone may be next to nothing, and its rounding all there is."""
    module = restore_model(artifact, data.task)
    batch = windows(data, tuple(artifact.options["covariates"]))
    torch.manual_seed(0)
    return pointwise_loss(module.train()(batch), batch).mean(dim=1).detach().numpy()


def test_quantile_levels_are_those_of_the_protocol() -> None:
    assert len(QUANTILE_LEVELS) == 21
    assert QUANTILE_LEVELS[:3] == (0.01, 0.05, 0.1)
    assert QUANTILE_LEVELS[-2:] == (0.95, 0.99)


@every_model
def test_every_model_has_its_presets_and_says_what_it_can_use(name: str) -> None:
    options = record(name)
    assert set(options.presets) == {"tiny", "small", "released"}
    assert set(options.can_use) <= set(COVARIATES)
    assert set(options.can_use_untrained) <= set(options.can_use)
    assert options().model_dump()["network"] == options.presets["small"].model_dump()


@every_model
def test_shapes_and_sorted_quantiles(name: str, data: Data) -> None:
    module, batch, _ = started(name, data)
    said = module.eval()(batch)
    assert said.point_BH.shape == batch.target_BH.shape
    assert torch.isfinite(said.point_BH).all()
    assert said.loss_BH is None
    if said.quantiles_BHQ is not None:
        assert said.quantiles_BHQ.shape == (*batch.target_BH.shape, len(QUANTILE_LEVELS))
        assert (said.quantiles_BHQ.diff(dim=-1) >= 0).all()


@every_model
def test_target_does_not_reach_the_forecast(name: str, data: Data) -> None:
    module, batch, _ = started(name, data)
    other = batch._replace(
        target_BH=torch.randn_like(batch.target_BH),
        target_observed_BH=torch.zeros_like(batch.target_observed_BH),
    )
    module.eval()
    assert torch.equal(module(batch).point_BH, module(other).point_BH)


def moved(module: torch.nn.Module, before: Batch, after: Batch) -> float:
    module.eval()
    with torch.no_grad():
        return float((module(after).point_BH - module(before).point_BH).abs().max())


@every_model
def test_what_is_declared_moves_the_forecast(name: str, data: Data) -> None:
    can_use = record(name).can_use
    module, batch, channels = started(name, data, covariates=can_use)
    shuffled = torch.randperm(
        batch.context_BLC.shape[1], generator=torch.Generator().manual_seed(1)
    )
    for number, channel in enumerate(channels.context):
        context = batch.context_BLC.clone()
        # What was never recorded in this cohort stands at 0: as if it had been.
        noise = torch.randn(context.shape[:2], generator=torch.Generator().manual_seed(2))
        seen = batch.context_observed_BLC.clone()
        seen[..., number] = True
        if batch.context_observed_BLC[..., number].any():
            context[..., number] = context[:, shuffled, number]
        else:
            context[..., number] = noise
        there = batch._replace(context_BLC=context, context_observed_BLC=seen)
        assert moved(module, batch, there) > 1e-6, channel
    for number, channel in enumerate(channels.future):
        future = batch.future_BHF.clone()
        future[..., number] += torch.linspace(-2, 2, future.shape[1])
        known = batch.future_observed_BHF.clone()
        known[..., number] = True
        there = batch._replace(future_BHF=future, future_observed_BHF=known)
        assert moved(module, batch, there) > 1e-6, f"future of {channel}"


@every_model
def test_what_is_not_declared_may_not_be_asked_for(name: str, task: Task) -> None:
    for covariate in sorted(set(COVARIATES) - set(record(name).can_use)):
        with pytest.raises(InputError, match=f"'{covariate}' cannot be used by this model"):
            build(name, task, covariates=(covariate,))
    with pytest.raises(InputError, match="unknown covariate 'insulin'; known: "):
        build(name, task, covariates=("insulin",))


@every_model
def test_missing_covariates_and_slow_sensors_are_legal(name: str, data: Data) -> None:
    """Nothing of insulin is on record, and two of three readings are unobserved."""
    can_use = record(name).can_use
    module, batch, channels = started(name, data, covariates=can_use)
    context, seen = batch.context_BLC.clone(), batch.context_observed_BLC.clone()
    future, known = batch.future_BHF.clone(), batch.future_observed_BHF.clone()
    for names, values, mask in (
        (channels.context, context, seen),
        (channels.future, future, known),
    ):
        of_insulin = [number for number, one in enumerate(names) if one.startswith("i")]
        values[..., of_insulin], mask[..., of_insulin] = 0, False
    slow = torch.arange(context.shape[1]) % 3 == 2
    seen[:, ~slow, 0] = False
    context[..., 0] = context[:, (torch.arange(context.shape[1]) // 3 * 3 - 1).clamp(min=0), 0]
    ahead = batch.target_observed_BH & (torch.arange(batch.target_BH.shape[1]) % 3 == 2)
    blind = Batch(context, seen, future, known, torch.where(ahead, batch.target_BH, 0.0), ahead)
    said = module.train()(blind)
    loss = (pointwise_loss(said, blind) * ahead).sum() / ahead.sum()
    loss.backward()
    assert torch.isfinite(loss)
    grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    with torch.no_grad():
        assert torch.isfinite(module.eval()(blind).point_BH).all()


@every_model
def test_a_window_is_forecast_alike_alone_and_in_company(name: str, data: Data) -> None:
    module, batch, _ = started(name, data)
    module.eval()
    with torch.no_grad():
        alone = module(Batch(*(part[1:2] for part in batch))).point_BH
        np.testing.assert_allclose(alone, module(batch).point_BH[1:2], atol=2e-5)


@pytest.mark.slow
@every_model
def test_the_loss_falls_on_one_batch(name: str, data: Data) -> None:
    module, batch, _ = started(name, data)
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3)
    losses = []
    for _ in range(150):
        loss = (pointwise_loss(module.train()(batch), batch) * batch.target_observed_BH).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
@every_model
def test_the_same_seed_gives_the_same_forecasts_and_another_others(
    name: str, data: Data, folders: dict[str, Path]
) -> None:
    first = load_artifact(folders[name])
    again = fit_model(name, {"preset": "tiny"}, data, SHORT)
    assert first.state.keys() == again.state.keys()
    assert all(np.array_equal(first.state[key], again.state[key]) for key in first.state)
    np.testing.assert_array_equal(points(first, data), points(again, data))
    other = fit_model(name, {"preset": "tiny"}, data, SHORT.model_copy(update={"seed": 8}))
    assert not np.array_equal(points(first, data), points(other, data))


@pytest.mark.slow
def test_saved_models_forecast_the_same_in_a_fresh_process(
    data: Data, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Another process reads folders and tables from disk, and knows nothing else."""
    from nocturnal_kedro.datasets import CorpusDataset

    CorpusDataset(filepath=str(tmp_path / "corpus")).save(data.corpus)
    data.splits.to_pickle(tmp_path / "splits")  # of this test alone; the project pickles nothing
    data.origins.to_pickle(tmp_path / "origins")
    named = {name: str(folders[name]) for name in MODELS}
    code = f"""
import pandas as pd
from pathlib import Path
from nocturnal_kedro.datasets import CorpusDataset
from nocturnal_kedro.training.artifact import load_artifact
from nocturnal_kedro.training.forecast import forecast
root = Path({str(tmp_path)!r})
corpus = CorpusDataset(filepath=str(root / "corpus")).load()
splits, origins = pd.read_pickle(root / "splits"), pd.read_pickle(root / "origins")
for name, folder in {named!r}.items():
    forecast(load_artifact(Path(folder)), corpus, splits, origins)[0].to_parquet(root / name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    for name, folder in folders.items():
        here, _ = forecast(load_artifact(folder), data.corpus, data.splits, data.origins)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), here, check_exact=True)
        quantiles = here.filter(regex=r"^q0\.")
        assert (quantiles.diff(axis=1).iloc[:, 1:] >= 0).all().all()
        assert np.isfinite(here.drop(columns="target_mg_dl").iloc[:, 3:]).all().all()


@every_model
def test_zero_shot_takes_weights_as_they_are(
    name: str, data: Data, folders: dict[str, Path]
) -> None:
    earlier = load_artifact(folders[name])
    given = {"strategy": "zero_shot", "weights": str(folders[name])}
    artifact = fit_model(name, given, data, SHORT)
    assert not artifact.state
    assert artifact.log.empty
    assert artifact.record["trained_parameters"] == artifact.record["windows"] == 0
    assert artifact.people == earlier.people
    np.testing.assert_array_equal(points(artifact, data), points(earlier, data))


@every_model
def test_fine_tuning_starts_from_the_weights_and_leaves_them(
    name: str, data: Data, folders: dict[str, Path]
) -> None:
    earlier = load_artifact(folders[name])
    given = {"strategy": "fine_tune", "weights": str(folders[name]), "learning_rate": 1e-5}
    artifact = fit_model(name, given, data, SHORT)
    changes = [np.abs(artifact.state[n] - earlier.state[n]).max() for n in artifact.state]
    assert 0 < max(changes) < 1e-3  # near where it started, and not there
    assert not np.array_equal(points(artifact, data), points(earlier, data))
    assert artifact.scaler == earlier.scaler


@every_model
def test_lora_trains_adapters_alone_and_saves_them_alone(
    name: str, data: Data, folders: dict[str, Path], tmp_path: Path
) -> None:
    earlier = load_artifact(folders[name])
    given = {
        "strategy": "fine_tune",
        "weights": str(folders[name]),
        "lora": {"rank": 2},
        "learning_rate": 1e-2,
    }
    artifact = fit_model(name, given, data, SHORT)
    assert artifact.state
    assert all(".lora_" in key for key in artifact.state)
    assert 0 < artifact.record["trained_parameters"] < artifact.record["parameters"]
    assert not np.array_equal(points(artifact, data), points(earlier, data))
    save_artifact(artifact, tmp_path / "adapted")
    np.testing.assert_array_equal(
        points(load_artifact(tmp_path / "adapted"), data), points(artifact, data)
    )
    merged = fit_model(name, given | {"lora": {"rank": 2, "merge": True}}, data, SHORT)
    assert not any(".lora_" in key or ".base_layer" in key for key in merged.state)
    np.testing.assert_allclose(loss_of(merged, data), loss_of(artifact, data), rtol=1e-4)
    if name != "chronos_t5":  # which draws tokens: rounding may flip one
        np.testing.assert_allclose(points(merged, data), points(artifact, data), atol=1e-2)


@every_model
def test_lora_without_such_a_layer_is_an_error(
    name: str, data: Data, folders: dict[str, Path]
) -> None:
    given = {
        "strategy": "fine_tune",
        "weights": str(folders[name]),
        "lora": {"targets": ["q_proj_of_another_model"]},
    }
    with pytest.raises(InputError, match="no linear layer's name ends in q_proj_of_another_model"):
        fit_model(name, given, data, SHORT)


CHECKPOINTED = {"chronos_bolt", "chronos_t5", "timellm"}


@every_model
def test_gradient_checkpointing_computes_again_or_is_refused(name: str, data: Data) -> None:
    module, batch, _ = started(name, data)

    def gradients() -> dict[str, torch.Tensor]:
        module.zero_grad()
        (pointwise_loss(module.train()(batch), batch) * batch.target_observed_BH).mean().backward()
        return {n: w.grad.clone() for n, w in module.named_parameters() if w.grad is not None}

    kept = gradients()
    if name not in CHECKPOINTED:
        with pytest.raises(InputError, match=f"model '{name}' has no gradient checkpointing"):
            checkpoint_gradients(module, name)
        return
    checkpoint_gradients(module, name)
    calls: Counter[str] = Counter()
    for part, inner in module.named_modules():
        inner.register_forward_pre_hook(lambda *_, part=part: calls.update([part]))
    computed_again = gradients()
    assert max(calls.values()) == 2
    assert all(torch.equal(kept[part], computed_again[part]) for part in kept)


with_head = pytest.mark.parametrize("name", [name for name in MODELS if record(name).head])


@pytest.mark.slow
@with_head
def test_the_head_alone_is_trained_and_saved(
    name: str, data: Data, folders: dict[str, Path], tmp_path: Path
) -> None:
    given = {
        "strategy": "fine_tune",
        "weights": str(folders[name]),
        "layers": "head",
        "learning_rate": 1e-2,
    }
    earlier = load_artifact(folders[name])
    artifact = fit_model(name, given, data, SHORT)
    assert artifact.state
    assert all(part.startswith(record(name).head) for part in artifact.state)
    before, after = (restore_model(one, data.task).state_dict() for one in (earlier, artifact))
    assert before.keys() == after.keys()
    changed = {part for part in before if not torch.equal(before[part], after[part])}
    assert changed
    assert changed <= set(artifact.state)
    weights = dict(restore_model(earlier, data.task).named_parameters())
    of_head = {part for part in weights if part.startswith(record(name).head)}
    assert set(artifact.state) == of_head
    assert 0 < len(of_head) < len(weights)
    assert artifact.record["trained_parameters"] == sum(weights[part].numel() for part in of_head)
    assert not np.array_equal(points(artifact, data), points(earlier, data))
    save_artifact(artifact, tmp_path / "tuned")
    np.testing.assert_array_equal(
        points(load_artifact(tmp_path / "tuned"), data), points(artifact, data)
    )


@every_model
def test_a_head_is_trained_of_weights_that_exist_and_of_models_that_have_one(name: str) -> None:
    there = {"strategy": "fine_tune", "weights": "a/b", "layers": "head"}
    if not record(name).head:
        with pytest.raises(InputError, match="no head apart from its network: layers all"):
            plugins.options("model", name, there)
        return
    assert plugins.options("model", name, there).layers == "head"
    for more in ({"strategy": "from_scratch", "weights": None}, {"lora": {}}):
        with pytest.raises(InputError, match="layers head trains the head of weights that exist"):
            plugins.options("model", name, there | more)
