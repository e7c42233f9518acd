"""Chronos (chronos-forecasting): Ansari et al. 2024, arXiv:2403.07815; glucose as a language.

Readings are divided by their mean over the context and become tokens, one for each bin; a T5 says
token by token what comes next. It learns by cross-entropy, and forecasts by drawing paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from nocturnal_kedro.errors import InputError
from nocturnal_kedro.models import MEDIAN, Forecast, ModelOptions, Rates, read_config
from nocturnal_kedro.models._chronos import Size, fall_with_distance
from nocturnal_kedro.series.origins import Task
from nocturnal_kedro.series.schema import QUANTILE_LEVELS
from nocturnal_kedro.series.windows import Batch, Channels, fill_forward

PAD, EOS = 0, 1  # no reading, and the end of the context; the bins come after
# Windows are always decoded so many at a time: rounding depends on how many, and the last digit of
# a probability may decide a token, and with it the rest of a path.
TOGETHER = 16
SEED = 0  # of the uniform numbers that draw the tokens


class Network(Size, frozen=True):
    """Size of fresh weights, their tokens, and how many paths they draw."""

    tokens: int = Field(default=512, ge=16)  # of which two stand for no value
    # Of the bins, in multiples of the context's mean glucose: some 1.5 mg/dL wide by default.
    lowest: float = 0.0
    highest: float = 5.0
    paths: int = Field(default=16, ge=1)
    # The newest day: a reading is a token here, and the time grows with the square of their number.
    context_steps: int = Field(default=288, ge=16)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} must be below highest {self.highest}")
        return self


class Options(ModelOptions, frozen=True):
    """Chronos; it has no place for covariates."""

    network: Network | None = None
    rates: ClassVar = Rates(fine_tune=1e-5, lora=1e-4)
    presets: ClassVar = {
        "tiny": Network(d_model=32, heads=2, d_ff=64, layers=1, tokens=256, paths=8),
        "small": Network(),
        # of amazon/chronos-t5-small, 46 M
        "released": Network(
            d_model=512,
            heads=8,
            d_ff=2048,
            layers=6,
            tokens=4096,
            lowest=-15.0,
            highest=15.0,
            paths=20,
        ),
    }
    released: ClassVar = "amazon/chronos-t5-small"
    can_use: ClassVar = ()
    usual: ClassVar = ()
    lora_targets: ClassVar = ("q", "k", "v", "o")


def configure(network: Network, task: Task, channels: Channels) -> dict[str, Any]:
    """The library's configuration of fresh weights: the whole horizon from one context."""
    return {
        "vocab_size": network.tokens,
        **network.of_t5(),
        "num_decoder_layers": network.layers,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": PAD,
        "chronos_config": {
            "tokenizer_class": "MeanScaleUniformBins",
            "tokenizer_kwargs": {"low_limit": network.lowest, "high_limit": network.highest},
            "context_length": min(network.context_steps, task.context_steps),
            "prediction_length": task.horizon_steps,
            "n_tokens": network.tokens,
            "n_special_tokens": 2,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "use_eos_token": True,
            "model_type": "seq2seq",
            "num_samples": network.paths,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def adapt(checkpoint: Path, task: Task, channels: Channels) -> dict[str, Any]:
    """A checkpoint's configuration, as it is: up to its own context, and any horizon."""
    config = read_config(checkpoint)
    own = config["chronos_config"]
    kind = own["model_type"], own["tokenizer_class"], config.get("tie_word_embeddings", True)
    if kind != ("seq2seq", "MeanScaleUniformBins", True):
        raise InputError(
            f"the checkpoint is a '{kind[0]}' model of '{kind[1]}'"
            f"{'' if kind[2] else ' without tied embeddings'}: this model is the published "
            f"chronos-t5, 'seq2seq' of 'MeanScaleUniformBins' with tied embeddings."
        )
    if own["context_length"] < task.context_steps:
        raise InputError(
            f"the checkpoint reads up to {own['context_length']} steps, and the task has "
            f"{task.context_steps}. Shorten task.context_steps."
        )
    return config


def build(architecture: dict[str, Any], task: Task, channels: Channels) -> nn.Module:
    """A Chronos with fresh weights."""
    return ChronosT5(architecture, task.horizon_steps)


class ChronosT5(nn.Module):
    """Trained on the tokens of what came; forecasts by paths that are drawn token by token.

    Of each drawn path the network says how likely every bin is at the next step. The mean of these
    distributions over the paths is the forecast of the step: with as many paths as one likes it is
    that of the drawn values, with few it is much nearer (Rao-Blackwell). The uniform numbers that
    draw are the same for every window and every call: forecasts are a function of the context.

    A horizon beyond the network's own is read on, as in the library, from the context with the
    median of the paths behind it. Glucose is read in mg/dL: its zero has a meaning here.

    Shapes: W windows decoded together, S paths, N heads, V tokens, K bins, T tokens of the context.
    """

    def __init__(self, architecture: dict[str, Any], horizon: int) -> None:
        super().__init__()
        from chronos import ChronosConfig
        from transformers import T5Config, T5ForConditionalGeneration

        self.horizon = horizon
        self.own = ChronosConfig(**architecture["chronos_config"])
        self.first = self.own.n_special_tokens + 1  # token of the lowest bin
        self.start = architecture["decoder_start_token_id"]
        self.glucose_scale = (0.0, 1.0)
        self.network = T5ForConditionalGeneration(T5Config(**architecture))
        _start_near(self.network)
        centers_K = self.own.create_tokenizer().centers
        between = (centers_K[1:] + centers_K[:-1]) / 2
        outer = centers_K[[0, -1]] + (centers_K[1] - centers_K[0]) / 2 * torch.tensor([-1.0, 1.0])
        self.centers_K: Tensor
        self.edges_K1: Tensor
        self.uniform_HS: Tensor
        self.register_buffer("centers_K", centers_K, persistent=False)
        edges_K1 = torch.cat([outer[:1], between, outer[1:]])
        self.register_buffer("edges_K1", edges_K1, persistent=False)
        uniform_HS = _stratified(horizon, self.own.num_samples)
        self.register_buffer("uniform_HS", uniform_HS, persistent=False)

    def forward(self, batch: Batch) -> Forecast:
        """Quantiles of glucose, (B, H, Q), and their median; in training the loss alone."""
        mean, deviation = self.glucose_scale
        context_BL = batch.context_BLC[..., 0] * deviation + mean
        context_BL = context_BL.masked_fill(~batch.context_observed_BLC[..., 0], torch.nan)
        if self.training:
            target_BH = batch.target_BH * deviation + mean
            target_BH = target_BH.masked_fill(~batch.target_observed_BH, torch.nan)
            # No forecast is made: it would take the time of all these steps one by one.
            nothing_BH = torch.full_like(target_BH, torch.nan)
            return Forecast(nothing_BH, None, self._cross_entropy(context_BL, target_BH))
        parts = [self._forecast(part) for part in context_BL.split(TOGETHER)]
        quantiles_BHQ = (torch.cat(parts) - mean) / deviation
        return Forecast(quantiles_BHQ[..., MEDIAN], quantiles_BHQ)

    def _cross_entropy(self, context_BL: Tensor, target_BH: Tensor) -> Tensor:
        """Of each step's token, given those before it, (B, H).

        Where nothing was observed stands the last reading before: when paths are drawn, the decoder
        never sees a gap either. The loss there is finite, and not counted by the loop.
        """
        all_BT = torch.cat([context_BL, target_BH], dim=1)
        seen_BT1 = ~all_BT.isnan()[..., None]
        filled_BH = fill_forward(all_BT.nan_to_num()[..., None], seen_BT1)[:, -self.horizon :, 0]
        loss = []
        for ahead in range(0, self.horizon, self.own.prediction_length):
            known_BL = all_BT[:, : context_BL.shape[1] + ahead]
            tokens_BT, attended_BT, scale_B = self._read(known_BL)
            values_BP = filled_BH[:, ahead : ahead + self.own.prediction_length]
            wanted_BP = self._tokens(values_BP / scale_B[:, None])
            logits_BPV = self.network(
                input_ids=tokens_BT,
                attention_mask=attended_BT,
                decoder_input_ids=functional.pad(wanted_BP[:, :-1], (1, 0), value=self.start),
            ).logits
            loss.append(functional.cross_entropy(logits_BPV.mT, wanted_BP, reduction="none"))
        return torch.cat(loss, dim=1)

    @torch.no_grad()
    def _forecast(self, context_BL: Tensor) -> Tensor:
        """Quantiles in mg/dL of up to TOGETHER windows, (B, H, Q)."""
        windows = len(context_BL)
        known_WL = torch.cat([context_BL, context_BL[-1:].expand(TOGETHER - windows, -1)])
        quantiles = []
        for uniform_PS in self.uniform_HS.split(self.own.prediction_length):
            tokens_WT, attended_WT, scale_W = self._read(known_WL)
            tokens_WSP, mass_WPV = self._draw(tokens_WT, attended_WT, uniform_PS)
            # As in the library, a token that is no bin's counts as the lowest.
            mass_WPK = mass_WPV[..., self.first :].clone()
            mass_WPK[..., 0] += mass_WPV[..., : self.first].sum(dim=-1)
            scale_W11 = scale_W[:, None, None]
            quantiles.append(_quantiles(mass_WPK, self.edges_K1) * scale_W11)
            bin_WSP = (tokens_WSP - self.first).clamp(min=0)
            median_WP = (self.centers_K[bin_WSP] * scale_W11).median(dim=1).values
            known_WL = torch.cat([known_WL, median_WP], dim=1)
        return torch.cat(quantiles, dim=1)[:windows]

    def _read(self, known_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a context in mg/dL, which of them are attended, and its scale: (B, T) and (B,).

        NaN becomes PAD, the scale is the mean of the absolute values, 1 where there is none.
        """
        known_BL = known_BL[:, -self.own.context_length :]
        attended_BT = ~known_BL.isnan()
        scale_B = known_BL.abs().nanmean(dim=1)
        scale_B = torch.where(scale_B > 0, scale_B, 1.0)
        tokens_BT = self._tokens(known_BL / scale_B[:, None]).masked_fill(
            ~attended_BT, self.own.pad_token_id
        )
        if self.own.use_eos_token:
            tokens_BT = functional.pad(tokens_BT, (0, 1), value=self.own.eos_token_id)
            attended_BT = functional.pad(attended_BT, (0, 1), value=True)
        return tokens_BT, attended_BT, scale_B

    def _tokens(self, scaled: Tensor) -> Tensor:
        inner = self.edges_K1[1:-1]
        return torch.bucketize(scaled.contiguous(), inner, right=True) + self.first

    def _draw(
        self, tokens_WT: Tensor, attended_WT: Tensor, uniform_PS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paths after a context, (W, S, P), and their mean distribution by step, (W, P, V)."""
        encoder, decoder = self.network.encoder, self.network.decoder
        steps, paths = uniform_PS.shape
        read_WTD = encoder(input_ids=tokens_WT, attention_mask=attended_WT).last_hidden_state
        layers = [_Layer(block, read_WTD, paths, steps) for block in decoder.block]
        bias_NPP = decoder.block[0].layer[0].SelfAttention.compute_bias(steps, steps)[0]
        token_WS = tokens_WT.new_full((len(tokens_WT), paths), self.start)
        drawn, mass = [], []
        for step in range(steps):
            hidden_WSD = decoder.embed_tokens(token_WS)
            for layer in layers:
                hidden_WSD = layer(hidden_WSD, step, bias_NPP, attended_WT)
            hidden_WSD = decoder.final_layer_norm(hidden_WSD) * self.network.model_dim**-0.5
            p_WSV = self._probabilities(self.network.lm_head(hidden_WSD))
            below_WSV = p_WSV.cumsum(dim=-1)
            at_WS1 = uniform_PS[step][:, None] * below_WSV[..., -1:]
            token_WS = torch.searchsorted(below_WSV, at_WS1, right=True)[..., 0]
            drawn.append(token_WS)
            mass.append(p_WSV.mean(dim=1))
        return torch.stack(drawn, dim=-1), torch.stack(mass, dim=1)

    def _probabilities(self, logits_WSV: Tensor) -> Tensor:
        """Of every token, in float64: as the library draws, of the likeliest alone, never EOS."""
        no = torch.finfo(logits_WSV.dtype).min
        logits_WSV[..., self.own.eos_token_id] = no
        logits_WSV = logits_WSV / self.own.temperature
        if 0 < self.own.top_k < logits_WSV.shape[-1]:
            least_WS1 = logits_WSV.topk(self.own.top_k, dim=-1).values[..., -1:]
            logits_WSV = logits_WSV.masked_fill(logits_WSV < least_WS1, no)
        p_WSV = logits_WSV.double().softmax(dim=-1)
        if self.own.top_p < 1:
            falling_WSV = p_WSV.sort(dim=-1, descending=True).values
            before_WSV = falling_WSV.cumsum(dim=-1) - falling_WSV
            least_WS1 = falling_WSV.masked_fill(before_WSV >= self.own.top_p, 1.0).amin(-1, True)
            p_WSV = p_WSV * (p_WSV >= least_WS1)
        return p_WSV


@torch.no_grad()
def _start_near(network: Any) -> None:
    """Let fresh weights know that bins have an order, and that the newest readings matter most.

    Left at random, every token is a word of its own, and where it stands is all but unknown: on
    validation minutes of training did not find the last reading. So embeddings are waves over the
    bins, 8 bins long to all of them; attention to itself falls with distance; and the decoder looks
    in the context for what is like its own token, from EOS on, where the newest readings are
    gathered.
    """
    weight_VD = network.shared.weight
    tokens, width = weight_VD.shape
    length_D = 8 * (tokens / 8) ** torch.rand(width)
    turns_VD = torch.arange(tokens)[:, None] / length_D + torch.rand(width)
    weight_VD[:] = 2**0.5 * torch.sin(2 * torch.pi * turns_VD)
    weight_VD[network.config.decoder_start_token_id] = weight_VD[network.config.eos_token_id]
    fall_with_distance(network.encoder, sides=2)
    fall_with_distance(network.decoder, sides=1)
    for block in network.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.q.weight[:] = 0.5 * attention.k.weight


class _Layer:
    """A layer of the decoder, one step at a time, with the keys and values of the steps before.

    The library's own repeats the context's keys and values for every path. E is a head's width.
    """

    def __init__(self, block: Any, read_WTD: Tensor, paths: int, steps: int) -> None:
        self.to_itself, self.to_context, self.feed_forward = block.layer
        context = self.to_context.EncDecAttention
        self.heads = context.n_heads
        self.context_keys_WNTE = self._split(context.k(read_WTD)).transpose(1, 2)
        self.context_values_WNTE = self._split(context.v(read_WTD)).transpose(1, 2)
        shape = (len(read_WTD), paths, self.heads, steps, context.key_value_proj_dim)
        self.keys_WSNPE = read_WTD.new_empty(shape)
        self.values_WSNPE = read_WTD.new_empty(shape)

    def __call__(
        self, hidden_WSD: Tensor, step: int, bias_NPP: Tensor, attended_WT: Tensor
    ) -> Tensor:
        attention = self.to_itself.SelfAttention
        normed_WSD = self.to_itself.layer_norm(hidden_WSD)
        self.keys_WSNPE[..., step, :] = self._split(attention.k(normed_WSD))
        self.values_WSNPE[..., step, :] = self._split(attention.v(normed_WSD))
        asked_WSN1E = self._split(attention.q(normed_WSD))[..., None, :]
        scores_WSN1P = asked_WSN1E @ self.keys_WSNPE[..., : step + 1, :].mT
        weights_WSN1P = (scores_WSN1P + bias_NPP[:, step, None, : step + 1]).softmax(dim=-1)
        found_WSN1E = weights_WSN1P @ self.values_WSNPE[..., : step + 1, :]
        hidden_WSD = hidden_WSD + attention.o(found_WSN1E.flatten(2))

        attention = self.to_context.EncDecAttention
        normed_WSD = self.to_context.layer_norm(hidden_WSD)
        asked_WNSE = self._split(attention.q(normed_WSD)).transpose(1, 2)
        scores_WNST = asked_WNSE @ self.context_keys_WNTE.mT
        no = torch.finfo(scores_WNST.dtype).min
        scores_WNST = scores_WNST.masked_fill(~attended_WT[:, None, None], no)
        found_WNSE = scores_WNST.softmax(dim=-1) @ self.context_values_WNTE
        hidden_WSD = hidden_WSD + attention.o(found_WNSE.transpose(1, 2).flatten(2))
        return self.feed_forward(hidden_WSD)

    def _split(self, wide: Tensor) -> Tensor:
        return wide.unflatten(-1, (self.heads, -1))


def _quantiles(mass_WPK: Tensor, edges_K1: Tensor) -> Tensor:
    """Quantiles of bins that hold `mass`, spread evenly over each, (W, P, Q)."""
    below_WPK = mass_WPK.cumsum(dim=-1)
    level_WPQ = below_WPK[..., -1:] * below_WPK.new_tensor(QUANTILE_LEVELS)
    bin_WPQ = torch.searchsorted(below_WPK, level_WPQ)
    inside_WPQ = mass_WPK.gather(-1, bin_WPQ)
    over_WPQ = level_WPQ - (below_WPK.gather(-1, bin_WPQ) - inside_WPQ)
    low_WPQ, high_WPQ = edges_K1[bin_WPQ], edges_K1[bin_WPQ + 1]
    share_WPQ = (over_WPQ / inside_WPQ).clamp(0, 1).to(edges_K1.dtype)
    # Rounding may put the end of a bin above the start of the next.
    return (low_WPQ + share_WPQ * (high_WPQ - low_WPQ)).sort(dim=-1).values


def _stratified(steps: int, paths: int) -> Tensor:
    """Uniform numbers, (steps, paths): at each step one in every S-th part, in any order."""
    generator = np.random.default_rng(SEED)
    parts_HS = generator.permuted(np.tile(np.arange(paths), (steps, 1)), axis=1)
    return torch.from_numpy((parts_HS + generator.random((steps, paths))) / paths)
