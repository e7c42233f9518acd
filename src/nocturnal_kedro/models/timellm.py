"""Time-LLM (neuralforecast): Jin et al. 2024, arXiv:2310.01728; 21 native quantiles.

Patches of glucose are put in terms of a language model's own words, behind a prompt that tells
what they are. The language model reads both and is never trained; what stands around it is.
`weights` are those of a language model. From scratch it is one of random weights, that has read
nothing: what Tan et al. 2024 (arXiv:2406.16964) compare with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import Forecast, ModelOptions, Rates, read_config
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS, STEPS_PER_DAY
from nocturnal_kedro.series.windows import Batch, Channels

# Each # is one character of a statistic, so that the prompts of all windows are of one length.
# The module sees scaled values alone: numbers are deviations from the mean of the training rows.
TOLD = (
    "Data: glucose of a person with type 1 diabetes every 5 minutes, in standard deviations from "
    "the mean of all people. Task: forecast the next {horizon} values from the {context} before. "
)
STATISTICS = (
    "Minimum #####, maximum #####, median #####, trend #####, strongest lags ###, ###, ###. "
)
CHARACTERS = "0123456789+-."  # that a statistic is spelt with
PLUS, MINUS, POINT = range(10, 13)
LAGS = 3
LARGEST = 999  # that three digits spell: hundredths of a deviation, or steps
SPELT = -1  # stands in the prompt where a character of a statistic goes

FAMILIES = ("bert", "gpt2", "llama", "qwen2", "qwen3")  # of language models; those that were tried
# A model with a head (language modelling, say) holds the model proper under one of these.
BELOW_HEAD = re.compile(r"^(transformer|bert|model)\.")
OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Added to a window's variance: 0.1 of a deviation, about 6 mg/dL. With the library's 1e-5, a flat
# window would have a flat forecast, and be sure of it.
VARIANCE = 0.01


class Network(BaseModel, extra="forbid", frozen=True):
    """Size of fresh weights; the defaults train on a laptop's CPU in minutes."""

    patch_length: int = Field(default=32, ge=4, le=STEPS_PER_DAY)
    stride: int = Field(default=16, ge=1, le=STEPS_PER_DAY)
    d_model: int = Field(default=32, ge=4)  # of a patch
    heads: int = Field(default=4, ge=1)  # from patches to prototypes, each d_ff wide
    d_ff: int = Field(default=32, ge=4)  # of the language model's output the head sees this many
    prototypes: int = Field(default=64, ge=2)
    head_rank: int = Field(default=4, ge=1)  # numbers per step that its quantiles are made from
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # Each window by its own mean and deviation, as the paper has it (Kim et al. 2022, RevIN). How
    # high glucose is, is then in the prompt alone: on validation it was 2 mg/dL worse.
    normalize: bool = False
    # of the language model, where it is fresh
    llm_width: int = Field(default=64, ge=8)
    llm_layers: int = Field(default=2, ge=1)
    llm_heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.llm_width % self.llm_heads:
            raise ValueError(
                f"llm_width {self.llm_width} must be a multiple of llm_heads {self.llm_heads}"
            )
        if self.d_ff > self.llm_width:
            raise ValueError(f"d_ff {self.d_ff} must not exceed llm_width {self.llm_width}")
        return self


# With GPT-2 of 124 M, as in the published code for quarter-hourly data, but for half the patches
# and a tenth of the prototypes: a thousand of GPT-2's 50 257 words would be 50 M weights to train.
RELEASED = Network(heads=8, d_ff=128, prototypes=100, llm_width=768, llm_layers=12, llm_heads=12)


class Options(ModelOptions, frozen=True):
    """Time-LLM; it knows glucose alone."""

    network: Network | None = None
    # What is trained is fresh on either way: the language model stays as it is.
    rates: ClassVar = Rates(fresh=3e-3, fine_tune=3e-3)
    fresh_around: ClassVar = True
    presets: ClassVar = {
        "tiny": Network(
            d_model=16, heads=2, d_ff=16, prototypes=16, dropout=0.0, llm_width=32, llm_layers=1
        ),
        "small": Network(),
        "released": RELEASED,
    }
    # The paper's Llama-7B asks for a licence and 27 GB; GPT-2 is the other model that it tries.
    released: ClassVar = "openai-community/gpt2"
    can_use: ClassVar = ()
    usual: ClassVar = ()
    lora_targets: ClassVar = (
        *("c_attn", "q_proj", "v_proj"),
        *("attention.self.query", "attention.self.value"),
    )
    head: ClassVar = ("output_projection.", "levels.")
    extra: ClassVar = "neuralforecast"
    packages: ClassVar = ("neuralforecast",)


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """Fresh weights around a GPT-2 of random weights, whose words are the 256 bytes.

    It has read nothing, so that the prompt tells it the window's statistics alone.
    """
    prompt = _prompt(STATISTICS, lambda text: list(text.encode()), ord)
    around = _around(network)
    llm = {
        "model_type": "gpt2",
        "vocab_size": 256,
        "n_positions": len(prompt["tokens"]) + _patches(around, task),
        "n_embd": network.llm_width,
        "n_layer": network.llm_layers,
        "n_head": network.llm_heads,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
    }
    return {"llm": llm, "prompt": prompt, "around": around}


def adapt(
    checkpoint: Path, task: Task, channels: Channels, network: Network = RELEASED
) -> dict[str, Any]:
    """The language model of a checkpoint; the weights around it are fresh."""
    llm = _read_llm(checkpoint)
    tokenizer = _read_tokenizer(checkpoint)
    unknown = [one for one in CHARACTERS if tokenizer.token_to_id(one) is None]
    if unknown:
        raise InputError(
            f"'{checkpoint}': the vocabulary has no token for {' '.join(unknown)}, and the prompt "
            f"spells numbers by {CHARACTERS}. Take another language model."
        )
    prompt = _prompt(
        TOLD.format(horizon=task.horizon_steps, context=task.context_steps) + STATISTICS,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        tokenizer.token_to_id,
    )
    if max(prompt["tokens"]) >= llm.vocab_size:
        raise InputError(
            f"'{checkpoint}': the tokenizer knows more tokens than the language model's "
            f"{llm.vocab_size}. Save the two that belong together."
        )
    around = _around(network)
    needed, room = len(prompt["tokens"]) + _patches(around, task), llm.max_position_embeddings
    if needed > room:
        raise InputError(
            f"'{checkpoint}': the language model reads {room} tokens, and prompt and patches are "
            f"{needed}. Take another language model, or lower task.context_steps."
        )
    around["d_ff"] = min(around["d_ff"], llm.hidden_size)
    # A checkpoint may say that it is of 16 bits: what stands around it is of 32.
    described = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    config = {name: it for name, it in llm.to_diff_dict().items() if name not in described}
    return {"llm": config, "prompt": prompt, "around": around}


def weight_name(name: str) -> str:
    """A checkpoint's name of a weight as the language model's own, without its head's prefix."""
    for old, new in OLD_NORMS.items():
        name = name.replace(old, new)
    return BELOW_HEAD.sub("", name)


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A Time-LLM with fresh weights."""
    return TimeLLM(architecture, task)


class TimeLLM(nn.Module):
    """The library's layers around a language model that is never trained.

    P tokens of the prompt, N patches, D width of the language model, S prototypes, R head_rank.
    """

    template_P: Tensor
    spelt_P: Tensor
    characters: Tensor

    def __init__(self, architecture: dict[str, Any], task: Task) -> None:
        super().__init__()
        from neuralforecast.models.timellm import FlattenHead, PatchEmbedding, ReprogrammingLayer
        from scipy.special import ndtri
        from transformers import AutoConfig

        config = AutoConfig.for_model(**architecture["llm"])
        size, prompt = architecture["around"], architecture["prompt"]
        self.horizon = task.horizon_steps
        self.patches = _patches(size, task)
        self.seen_width = size["d_ff"]
        self.normalizes = size["normalize"]
        self.network: Any = _language_model(config).requires_grad_(False)
        words, width = self.network.get_input_embeddings().weight.shape

        self.patch_embedding = PatchEmbedding(
            size["d_model"], size["patch_length"], size["stride"], size["dropout"]
        )
        self.mapping_layer = nn.Linear(words, size["prototypes"])
        self.reprogramming_layer = ReprogrammingLayer(
            size["d_model"], size["heads"], size["d_ff"], width, size["dropout"]
        )
        # The library drops out forecasts, not what they are made from: no dropout here.
        self.output_projection = FlattenHead(
            1, size["d_ff"] * self.patches, self.horizon * size["head_rank"], head_dropout=0.0
        )
        # 21 numbers a step straight from the patches would be five times as many weights.
        self.levels = nn.Linear(size["head_rank"], len(QUANTILE_LEVELS))
        with torch.no_grad():  # a standard normal distribution, to start from
            self.levels.bias.copy_(torch.from_numpy(ndtri(QUANTILE_LEVELS)))

        template_P = torch.tensor(prompt["tokens"])
        self.register_buffer("template_P", template_P, persistent=False)
        self.register_buffer("spelt_P", template_P == SPELT, persistent=False)
        self.register_buffer("characters", torch.tensor(prompt["characters"]), persistent=False)

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median as the point forecast."""
        glucose_BL, observed_BL = batch.context_BLC[..., 0], batch.context_observed_BLC[..., 0]
        mean_B1, deviation_B1 = _of_observed(glucose_BL, observed_BL)
        if not self.normalizes:
            mean_B1, deviation_B1 = torch.zeros_like(mean_B1), torch.ones_like(deviation_B1)
        values_BL = _about(mean_B1, glucose_BL, observed_BL) / deviation_B1

        embed = self.network.get_input_embeddings()
        prompt_BPD = embed(self.prompt(glucose_BL, observed_BL))
        prototypes_SD = self.mapping_layer(embed.weight.T).T
        patches_BNM, _ = self.patch_embedding(values_BL[:, None])
        patches_BND = self.reprogramming_layer(patches_BNM, prototypes_SD, prototypes_SD)
        read_BTD = self.network(
            inputs_embeds=torch.cat([prompt_BPD, patches_BND], dim=1), use_cache=False
        ).last_hidden_state

        seen_BND = read_BTD[:, -self.patches :, : self.seen_width]
        steps_BHR = self.output_projection(seen_BND.transpose(1, 2)).unflatten(
            1, (self.horizon, -1)
        )
        levels_BHQ = self.levels(steps_BHR)
        return Forecast.of_quantiles(levels_BHQ * deviation_B1[..., None] + mean_B1[..., None])

    @torch.no_grad()
    def prompt(self, glucose_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """Tokens of every window's prompt, (B, P).

        It tells the levels before any normalisation. The paper's code tells those after it, from
        which nobody could say how high glucose is.
        """
        mean_B1, _ = _of_observed(glucose_BL, observed_BL)
        lags_B3 = _strongest_lags(_about(mean_B1, glucose_BL, observed_BL))
        first_B1 = observed_BL.int().argmax(dim=1, keepdim=True)
        levels_B4 = torch.stack(
            [
                glucose_BL.masked_fill(~observed_BL, torch.inf).amin(dim=1),
                glucose_BL.masked_fill(~observed_BL, -torch.inf).amax(dim=1),
                glucose_BL.masked_fill(~observed_BL, torch.nan).nanmedian(dim=1).values,
                glucose_BL[:, -1] - glucose_BL.gather(1, first_B1)[:, 0],
            ],
            dim=1,
        ).nan_to_num(0.0, 0.0, 0.0)  # of a window without a reading
        spelt = [_spell_level(levels_B4), _spell(lags_B3)]
        prompt_BP = self.template_P.repeat(len(glucose_BL), 1)
        prompt_BP[:, self.spelt_P] = self.characters[torch.cat([s.flatten(1) for s in spelt], 1)]
        return prompt_BP


def _of_observed(values_BL: Tensor, observed_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each window's readings, (B, 1)."""
    count_B1 = observed_BL.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1 = (values_BL * observed_BL).sum(dim=1, keepdim=True) / count_B1
    square_BL = (values_BL - mean_B1) ** 2 * observed_BL
    return mean_B1, (square_BL.sum(dim=1, keepdim=True) / count_B1 + VARIANCE).sqrt()


def _about(mean_B1: Tensor, values_BL: Tensor, observed_BL: Tensor) -> Tensor:
    """Values about a mean, (B, L); before the first reading 0: there is nothing to fill from."""
    return torch.where(observed_BL.cumsum(dim=1) > 0, values_BL - mean_B1, 0.0)


def _strongest_lags(values_BL: Tensor) -> Tensor:
    """Steps after which each window is most like itself, (B, 3): the autocorrelation's peaks.

    Values are about their mean. The highest peak comes first, and 0 where there is none left. The
    largest values, which the paper takes, stand beside lag 0 whatever the window.
    """
    length = values_BL.shape[1]
    # Zeros behind, or the window would be held against itself in a circle. Rounded, so that what
    # is as good as equal does not depend on the order of a sum.
    spectrum = torch.fft.rfft(values_BL.double(), n=2 * length)
    alike_BL = torch.fft.irfft(spectrum.abs() ** 2, n=2 * length)[:, : min(length, LARGEST)]
    alike_BL = (alike_BL / length).round(decimals=6)
    middle_BL = alike_BL[:, 1:-1]
    peak_BL = (middle_BL > alike_BL[:, :-2]) & (middle_BL >= alike_BL[:, 2:]) & (middle_BL > 0)
    best = torch.where(peak_BL, middle_BL, 0.0).sort(dim=1, descending=True, stable=True)
    return torch.where(best.values > 0, best.indices + 1, 0)[:, :LAGS]


def _spell_level(level_BK: Tensor) -> Tensor:
    """Where in CHARACTERS the five of '+1.23' stand, (B, K, 5)."""
    hundredths_BK = (level_BK * 100).round().clamp(-LARGEST, LARGEST).long()
    sign_BK1 = torch.where(hundredths_BK < 0, MINUS, PLUS)[..., None]
    digits_BK3 = _spell(hundredths_BK.abs())
    point_BK1 = torch.full_like(sign_BK1, POINT)
    return torch.cat([sign_BK1, digits_BK3[..., :1], point_BK1, digits_BK3[..., 1:]], dim=-1)


def _spell(number_BK: Tensor) -> Tensor:
    """Where in CHARACTERS the three digits of a number up to LARGEST stand, (B, K, 3)."""
    return number_BK[..., None] // number_BK.new_tensor([100, 10, 1]) % 10


def _patches(size: dict[str, Any], task: Task) -> int:
    """How many patches there are: the window's, and one more over its end."""
    return (task.context_steps - size["patch_length"]) // size["stride"] + 2


def _around(network: Network) -> dict[str, Any]:
    """The sizes of what stands around the language model."""
    return network.model_dump(exclude={"llm_width", "llm_layers", "llm_heads"})


def _prompt(
    text: str, encode: Callable[[str], list[int]], token_of: Callable[[str], int]
) -> dict[str, list[int]]:
    """A prompt's tokens, SPELT where the characters of a statistic go, and theirs."""
    tokens: list[int] = []
    for part in re.split("(#+)", text):
        tokens += [SPELT] * len(part) if part.startswith("#") else encode(part)
    return {"tokens": tokens, "characters": [token_of(one) for one in CHARACTERS]}


def _language_model(config: Any) -> Any:
    """A language model of fresh weights, without a head."""
    from transformers import AutoModel

    llm = cast(Any, AutoModel).from_config(config)
    if hasattr(llm, "pooler"):
        llm.pooler = None  # BERT's, of whole sentences: not every checkpoint has it
    return llm


def _read_llm(checkpoint: Path) -> Any:
    """The configuration of a checkpoint's language model, without dropout: it is not trained."""
    from transformers import AutoConfig, PretrainedConfig

    read_config(checkpoint)  # raises where there is none that can be read
    family = PretrainedConfig.get_config_dict(checkpoint)[0].get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"'{checkpoint}' is a model of the family '{family}', and Time-LLM reads "
            f"{', '.join(FAMILIES)}. Give the folder of a language model of one of these."
        )
    config = AutoConfig.from_pretrained(checkpoint)
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _read_tokenizer(checkpoint: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    file, read = checkpoint / "tokenizer.json", cast(Any, PreTrainedTokenizerFast)
    try:
        tokenizer = read(tokenizer_file=str(file)).backend_tokenizer
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"'{file}' cannot be read ({error}): the prompt is put in the language model's tokens. "
            f"Save its tokenizer into that folder, by save_pretrained."
        ) from error
    tokenizer.no_padding()  # some files ask for it, and every piece would be 128 tokens long
    tokenizer.no_truncation()
    return tokenizer
