"""Time-LLM: its prompt, its language model that stays as it is, and the library's own way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import timellm
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels
from nocturnal_kedro.training.artifact import load_artifact, save_artifact
from nocturnal_kedro.training.data import Data
from nocturnal_kedro.training.fit import fit_model
from nocturnal_kedro.training.forecast import answer_with
from nocturnal_kedro.training.options import Training
from nocturnal_kedro.training.start import Start, restore_model, start_model
from tests.conftest import SCALER

GLUCOSE_ALONE = Channels(())
TASK = Task()
SAID = "Data: glucose every 5 minutes. Task: forecast the next values. Minimum, maximum, trend."
SHORT = Training(epochs=1, steps_per_epoch=2, batch_size=4)
Folder = Callable[[str], Path]


def save_tokenizer(folder: Path) -> int:
    """A byte-level vocabulary learnt from a sentence; returns how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator([SAID], learn)
    tokenizer.enable_padding(length=64)  # as in the file of a sentence transformer
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    return tokenizer.get_vocab_size()


def language_model(family: str, vocabulary: int) -> Any:
    import transformers as hf

    if family.startswith("gpt2"):
        config = hf.GPT2Config(
            vocab_size=vocabulary, n_positions=512, n_embd=32, n_layer=2, n_head=2
        )
        return (hf.GPT2LMHeadModel if family == "gpt2 with head" else hf.GPT2Model)(config)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    if family.startswith("bert"):
        config = hf.BertConfig(**sizes)
        return (hf.BertForMaskedLM if family == "bert with head" else hf.BertModel)(config)
    made = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    config = getattr(hf, f"{made}Config")(**sizes, num_key_value_heads=1)
    return getattr(hf, f"{made}ForCausalLM")(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A language model of a family, as `save_pretrained` writes it, beside its tokenizer."""

    def save(family: str) -> Path:
        path = tmp_path_factory.mktemp(family.replace(" ", "_"))
        torch.manual_seed(0)
        language_model(family, save_tokenizer(path)).save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="module")
def batch(data: Data) -> Batch:
    first = int(data.corpus.people["first"].iloc[1])
    rows = torch.arange(first + 700, first + 2300, 400)
    return data.gatherer(SCALER, GLUCOSE_ALONE).gather(rows)


def fresh(preset: str = "tiny", **network: Any) -> Any:
    options: Any = plugins.options("model", "timellm", {"preset": preset, "network": network})
    torch.manual_seed(0)
    architecture = timellm.configure(options.network, TASK, GLUCOSE_ALONE)
    return timellm.build(json.loads(json.dumps(architecture)), TASK, GLUCOSE_ALONE).eval()


def start(weights: Path, **given: Any) -> Start:
    options: Any = plugins.options(
        "model", "timellm", {"strategy": "fine_tune", "weights": str(weights)} | given
    )
    torch.manual_seed(0)
    return start_model("timellm", options, TASK)


def window(glucose_BL: torch.Tensor, observed_BL: torch.Tensor | None = None) -> Batch:
    """A batch of these scaled values."""
    windows = len(glucose_BL)
    if observed_BL is None:
        observed_BL = torch.ones_like(glucose_BL, dtype=torch.bool)
    nothing_BHF = torch.zeros(windows, TASK.horizon_steps, 0)
    target_BH = torch.zeros(windows, TASK.horizon_steps)
    return Batch(
        glucose_BL[..., None],
        observed_BL[..., None],
        nothing_BHF,
        nothing_BHF.bool(),
        target_BH,
        target_BH.bool(),
    )


def prompt_of(module: Any, batch: Batch) -> torch.Tensor:
    glucose_BL, observed_BL = batch.context_BLC[..., 0], batch.context_observed_BLC[..., 0]
    return module.prompt(glucose_BL, observed_BL)


def told(module: Any, batch: Batch) -> list[str]:
    return [bytes(tokens.tolist()).decode() for tokens in prompt_of(module, batch)]


def test_the_prompt_tells_the_window() -> None:
    steps_L = torch.arange(512.0)
    wave_L = 0.5 + torch.sin(2 * torch.pi * steps_L / 100)
    ramp_L = torch.linspace(-2, -1.25, 512)
    far_L = torch.where(steps_L < 256, -20.0, 20.0)
    flat_L = torch.zeros(512)
    said = told(fresh(), window(torch.stack([wave_L, ramp_L, far_L, flat_L])))
    assert said[0] == (
        "Minimum -0.50, maximum +1.50, median +0.50, trend +0.64, "
        "strongest lags 100, 200, 299. "  # fewer values meet at a longer lag, and draw its peak in
    )
    assert said[1].startswith("Minimum -2.00, maximum -1.25, median -1.63, trend +0.75, ")
    assert said[1].endswith("strongest lags 000, 000, 000. ")
    assert said[2].startswith("Minimum -9.99, maximum +9.99, median -9.99, trend +9.99, ")
    assert said[3] == (
        "Minimum +0.00, maximum +0.00, median +0.00, trend +0.00, strongest lags 000, 000, 000. "
    )


def test_statistics_are_of_what_was_observed() -> None:
    glucose_BL = torch.linspace(-1, 1, 512).repeat(2, 1)
    observed_BL = torch.ones_like(glucose_BL, dtype=torch.bool)
    glucose_BL[1, :100], observed_BL[1, :100] = 7.0, False
    glucose_BL[1, 300:310], observed_BL[1, 300:310] = -7.0, False
    seen = told(fresh(), window(glucose_BL, observed_BL))[1]
    assert seen.startswith("Minimum -0.61, maximum +1.00, median +0.21, trend +1.61, ")
    nothing = window(torch.zeros(1, 512), torch.zeros(1, 512, dtype=torch.bool))
    assert "+0.00, maximum +0.00, median +0.00, trend +0.00" in told(fresh(), nothing)[0]
    assert torch.isfinite(fresh()(nothing).quantiles_BHQ).all()


def test_a_tokenizer_s_prompt_says_the_same(folder: Folder, batch: Batch) -> None:
    from transformers import AutoTokenizer

    weights = folder("gpt2")
    started = start(weights)
    tokens_BP = prompt_of(started.module, batch)
    said = AutoTokenizer.from_pretrained(weights).batch_decode(tokens_BP)
    for ours, theirs in zip(told(fresh(), batch), said, strict=True):
        description, _, statistics = theirs.partition("Minimum")
        assert "Minimum" + statistics == ours
        assert "forecast the next 96 values from the 512 before." in description


def test_normalized_only_the_prompt_knows_how_high_glucose_is(batch: Batch) -> None:
    module = fresh(normalize=True)
    higher = batch._replace(context_BLC=batch.context_BLC + 1)
    told_so = module(higher).point_BH - module(batch).point_BH
    assert (told_so - 1).abs().max() > 1e-4
    tokens_BP = prompt_of(module, batch)
    module.prompt = lambda *_: tokens_BP
    not_told = module(higher).point_BH - module(batch).point_BH
    np.testing.assert_allclose(not_told.detach(), 1, atol=1e-5)


def test_statistics_move_the_forecast_one_by_one(batch: Batch) -> None:
    module = fresh()
    tokens_BP = prompt_of(module, batch)
    module.prompt = lambda *_: tokens_BP
    before_BH = module(batch).point_BH.detach()
    for at in module.spelt_P.nonzero()[:, 0].tolist():
        others_BP = tokens_BP.clone()
        others_BP[:, at] = torch.where(others_BP[:, at] == ord("1"), ord("7"), ord("1"))
        module.prompt = lambda *_, changed=others_BP: changed
        assert (module(batch).point_BH - before_BH).abs().max() > 1e-7


def test_a_prompt_does_not_depend_on_the_company(batch: Batch) -> None:
    module = fresh()
    together = told(module, batch)
    alone = [told(module, Batch(*(part[i : i + 1] for part in batch)))[0] for i in range(4)]
    assert alone == together


def test_equals_its_library(folder: Folder, batch: Batch) -> None:
    """The library's own forward pass, given our weights, our prompt and our floor of variance."""
    from neuralforecast.common._modules import RevIN
    from neuralforecast.models import TimeLLM

    weights = folder("gpt2")
    started = start(weights)
    ours: Any = started.module.eval()
    ours.normalizes = True
    size = started.architecture["around"]
    theirs = TimeLLM(
        h=TASK.horizon_steps * size["head_rank"],
        input_size=TASK.context_steps,
        patch_len=size["patch_length"],
        stride=size["stride"],
        d_ff=size["d_ff"],
        d_model=size["d_model"],
        n_heads=size["heads"],
        d_llm=32,
        enc_in=1,
        dec_in=1,
        llm=str(weights),
    ).eval()
    theirs.mapping_layer = nn.Linear(*ours.mapping_layer.weight.T.shape)
    theirs.normalize_layers = RevIN(1, eps=timellm.VARIANCE)
    mine = {name: weight for name, weight in ours.state_dict().items() if "levels." not in name}
    missing = theirs.load_state_dict(
        {name.replace("network.", "llm."): weight for name, weight in mine.items()}, strict=False
    )
    assert not missing.unexpected_keys
    assert missing.missing_keys == ["word_embeddings"]  # those of llm, a second time
    tokens_BP = prompt_of(ours, batch)
    theirs.llm_tokenizer = lambda *_, **__: type("Tokens", (), {"input_ids": tokens_BP})

    glucose_BL = batch.context_BLC[..., 0]
    assert batch.context_observed_BLC.all()
    steps_BH = theirs.forecast(glucose_BL[..., None])[..., 0]
    mean_B1 = glucose_BL.mean(dim=1, keepdim=True)
    deviation_B1 = (glucose_BL.var(dim=1, keepdim=True, correction=0) + timellm.VARIANCE).sqrt()
    steps_BHR = ((steps_BH - mean_B1) / deviation_B1).unflatten(1, (TASK.horizon_steps, -1))
    expected_BHQ = ours.levels(steps_BHR) * deviation_B1[..., None] + mean_B1[..., None]
    ours.prompt = lambda *_: tokens_BP
    actual_BHQ = ours(batch).quantiles_BHQ
    np.testing.assert_allclose(
        actual_BHQ.detach(), expected_BHQ.sort(dim=-1).values.detach(), atol=2e-5
    )
    assert actual_BHQ.shape[-1] == len(QUANTILE_LEVELS)


FAMILIES = ("gpt2", "gpt2 with head", "bert", "bert with head", "llama", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_takes_every_weight_of_a_language_model(family: str, folder: Folder, batch: Batch) -> None:
    from transformers import AutoModel

    weights = folder(family)
    started = start(weights)
    whole = AutoModel.from_pretrained(weights).state_dict()
    taken = started.module.network.state_dict()
    assert {name for name in whole if not name.startswith("pooler.")} == set(taken)
    assert all(torch.equal(whole[name], weight) for name, weight in taken.items())
    assert not [name for name in started.fresh if name.startswith("network.")]
    layers = started.module.network.modules()
    assert not [one for one in layers if isinstance(one, nn.Dropout) and one.p]
    forecast = started.module(batch)
    forecast.point_BH.sum().backward()
    assert torch.isfinite(forecast.quantiles_BHQ).all()
    for name, weight in started.module.named_parameters():
        assert (weight.grad is None) == name.startswith("network."), name


def test_old_names_of_bert_s_norms_are_known() -> None:
    old = "bert.encoder.layer.0.output.LayerNorm.gamma"
    assert timellm.weight_name(old) == "encoder.layer.0.output.LayerNorm.weight"
    assert timellm.weight_name("transformer.h.0.ln_1.bias") == "h.0.ln_1.bias"
    assert timellm.weight_name("model.layers.0.mlp.up_proj.weight") == "layers.0.mlp.up_proj.weight"
    assert timellm.weight_name("wte.weight") == "wte.weight"


def test_a_language_model_stays_as_it_is_and_is_not_kept_twice(
    folder: Folder, data: Data, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = folder("gpt2 with head")
    given = {"strategy": "fine_tune", "weights": str(weights)}
    artifact = fit_model("timellm", given, data, SHORT)
    assert not [name for name in artifact.state if name.startswith("network.")]
    assert "mapping_layer.weight" in artifact.state
    assert artifact.record["trained_parameters"] == sum(w.size for w in artifact.state.values())

    save_artifact(artifact, tmp_path / "artifact")
    loaded = load_artifact(tmp_path / "artifact")
    module = restore_model(loaded, TASK)
    saved = load_file(weights / "model.safetensors")
    for name, weight in module.network.state_dict().items():
        assert torch.equal(weight, saved[f"transformer.{name}"])
    rows = data.night_rows("validation")
    first, _, _ = answer_with(artifact, data, rows)
    again, _, _ = answer_with(loaded, data, rows)
    np.testing.assert_array_equal(first.quantiles_NHQ, again.quantiles_NHQ)

    warm = {"strategy": "fine_tune", "weights": str(tmp_path / "artifact")}
    further = fit_model("timellm", warm, data, SHORT)
    assert set(further.state) == set(artifact.state)
    as_it_is = {"strategy": "zero_shot", "weights": str(tmp_path / "artifact")}
    same, _, _ = answer_with(fit_model("timellm", as_it_is, data, SHORT), data, rows)
    np.testing.assert_array_equal(first.quantiles_NHQ, same.quantiles_NHQ)

    other = language_model("gpt2 with head", saved["transformer.wte.weight"].shape[0])
    other.save_pretrained(weights)
    with pytest.raises(InputError, match="was fitted to other weights than"):
        restore_model(loaded, TASK)


def test_a_random_language_model_is_kept_whole_and_untrained(data: Data) -> None:
    artifact = fit_model("timellm", {"preset": "tiny"}, data, SHORT)
    torch.manual_seed(SHORT.seed)
    before = timellm.build(artifact.architecture, TASK, GLUCOSE_ALONE).state_dict()
    assert set(artifact.state) == set(before)
    for name, weight in before.items():
        unchanged = np.array_equal(artifact.state[name], weight)
        assert unchanged or not name.startswith("network."), name
    assert artifact.base is None
    assert artifact.record["trained_parameters"] < artifact.record["parameters"]


@pytest.mark.parametrize(
    ("family", "targets"), [("gpt2", 2), ("bert", 4), ("llama", 4), ("qwen3", 4)]
)
def test_lora_trains_adapters_and_what_is_fresh(
    family: str, targets: int, folder: Folder, batch: Batch
) -> None:
    started = start(folder(family), lora={"rank": 2})
    trained = {n for n, w in started.module.named_parameters() if w.requires_grad}
    adapters = {name for name in trained if name.startswith("network.")}
    assert len(adapters) == 2 * targets
    assert all(".lora_" in name for name in adapters)
    assert trained - adapters == started.fresh
    assert started.trained_weights() == trained
    started.module(batch).point_BH.sum().backward()
    assert all(w.grad is not None for w in started.module.parameters() if w.requires_grad)


def test_zero_shot_needs_a_fitted_model(folder: Folder) -> None:
    with pytest.raises(
        InputError, match=r"zero_shot takes weights as they are, and .* lacks levels\.bias"
    ):
        start(folder("gpt2"), strategy="zero_shot")


def test_glucose_alone_can_be_given() -> None:
    with pytest.raises(InputError, match=r"'iob_u' cannot be used by this model; .*: none"):
        plugins.options("model", "timellm", {"covariates": ["iob_u"]})
    options: Any = plugins.options("model", "timellm", {})
    assert start_model("timellm", options, TASK).channels == GLUCOSE_ALONE


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"llm_heads": 3}, "llm_width 32 must be a multiple of llm_heads 3"),
        ({"d_ff": 33}, "d_ff 33 must not exceed llm_width 32"),
        ({"patch_length": 289}, "less than or equal to 288"),
    ],
)
def test_sizes_must_agree(network: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plugins.options("model", "timellm", {"preset": "tiny", "network": network})


def cut_short(weights: Path) -> None:
    file = weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_a_layer(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = weights / "model.safetensors"
    save_file({n: w for n, w in load_file(file).items() if "h.1." not in n}, file)


def reconfigure(**changes: Any) -> Callable[[Path], None]:
    def change(weights: Path) -> None:
        file = weights / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without_digits(weights: Path) -> None:
    file = weights / "tokenizer.json"
    described = json.loads(file.read_text())
    del described["model"]["vocab"]["7"]
    file.write_text(json.dumps(described))


def other_tokenizer(weights: Path) -> None:
    reconfigure(vocab_size=200)(weights)
    language_model("gpt2", 200).save_pretrained(weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "damaged or cut short"),
        (without_a_layer, r"lack 12 of the network's own weights, network\.h\.1\."),
        (reconfigure(n_positions=100), "reads 100 tokens, and prompt and patches are"),
        (reconfigure(n_embd=64), r"of another size: .* has the shape"),
        (reconfigure(model_type="t5"), "family 't5', and Time-LLM reads bert, gpt2, llama"),
        # known to transformers only once granite-tsfm has been imported
        (reconfigure(model_type="tinytimemixer"), "family 'tinytimemixer', and Time-LLM reads"),
        (without_digits, "the vocabulary has no token for 7"),
        (other_tokenizer, "knows more tokens than the language model's 200"),
        (lambda weights: (weights / "tokenizer.json").unlink(), r"tokenizer\.json' cannot be read"),
        (lambda weights: (weights / "tokenizer.json").write_text("{"), "cannot be read"),
        (
            lambda weights: (weights / "config.json").write_text("{"),
            r"config\.json' cannot be read",
        ),
        (lambda weights: (weights / "model.safetensors").unlink(), r"no \*\.safetensors in"),
    ],
)
def test_an_unusable_folder_is_named(
    damage: Callable[[Path], None], message: str, folder: Folder, tmp_path: Path
) -> None:
    weights = tmp_path / "damaged"
    shutil.copytree(folder("gpt2"), weights)
    damage(weights)
    with pytest.raises(InputError, match=message) as raised:
        start(weights)
    assert str(weights) in str(raised.value)
