"""Settings of the method: the objective, the samples' gradients, and what makes one of them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, model_validator

from capo_ds.config.foreign import keys_of_paper
from capo_ds.config.paths import PathText
from capo_ds.config.section import Number, Section, no_flag
from capo_ds.parts import choices, known, names


def known_aggregator(name: str) -> str:
    return known("aggregator", name, "; GRPO's is mean")


def _sketch(name: str) -> str:
    return name if name == "none" else known("sketch", name, "; none is the exact Gram matrix")


def _objective(name: str) -> str:
    return known("objective", name, keys_of_paper(name))


def _scale(value: Any) -> Any:
    """The words of the first versions were true and false."""
    return {True: "group", False: "none"}[value] if isinstance(value, bool) else value


def _radius(value: Any) -> float | str:
    if value == "auto":
        return value
    try:
        radius = float(no_flag(value))
    except (TypeError, ValueError):
        radius = math.nan
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError("input should be auto, or a finite number greater than or equal to 0")
    return radius


class ObjectiveConfig(Section):
    """The policy objective; each choice that papers make differently is one key."""

    name: Annotated[PathText, AfterValidator(_objective)] = Field(
        default="grpo", description=f"the surrogate: {choices('objective')}"
    )
    options: dict[str, Any] = Field(
        default={}, description="options of your own objective, checked by its annotations"
    )
    baseline: Literal["group", "leave_one_out", "batch", "none"] = Field(
        default="group",
        description="what a reward is compared with: the mean of its group (GRPO), of the group's "
        "other responses (RLOO), of all responses of the step (REINFORCE++), or 0",
    )
    scale_advantages: Annotated[
        Literal["group", "batch", "batch_rewards", "none"], BeforeValidator(_scale)
    ] = Field(
        default="group",
        description="divide advantages by the standard deviation of the group's rewards (GRPO; or "
        "true), of the step's advantages (batch: REINFORCE++), of the step's rewards "
        "(batch_rewards: TRL's scale_rewards batch), or by 1 (none, or false: Dr. GRPO, RLOO)",
    )
    loss_aggregation: Literal["sequence_mean", "token_mean", "fixed_length"] = Field(
        default="sequence_mean",
        description="how token terms become one objective: mean over each response then over "
        "responses (GRPO); mean over all tokens (DAPO); sum over a response divided by "
        "rollout.max_new_tokens (Dr. GRPO)",
    )
    clip_low: Number = Field(
        default=0.2,
        ge=0,
        le=1,
        description="the ratio is clipped below 1 - this (0.0003 in GSPO; 1 in CISPO: not at all)",
    )
    clip_high: Number = Field(
        default=0.2,
        ge=0,
        description="the ratio is clipped above 1 + this (0.28 in DAPO, 0.0004 in GSPO)",
    )
    ratio_to: Literal["trainer", "sampler"] | None = Field(
        default=None,
        description="what the policy's ratio is taken to, and clipped around: the policy at the "
        "start of the step as the trainer computes it (the decoupled objective: how far it is from "
        "what sampled is rollout.importance_correction's alone), or what the responses were "
        "sampled with; null: sampler where rollout.ahead > 0, else trainer",
    )
    dual_clip: Number | None = Field(
        default=None,
        gt=1,
        description="tokens of negative advantage whose ratio is above this have no gradient (dual "
        "clip, Ye et al. 2020; 3 in verl); null: no such bound",
    )
    kl_weight: Number = Field(
        default=0.001,
        ge=0,
        description="weight beta of the k3 KL estimate to the base model; 0 skips it",
    )
    mask_truncated: StrictBool = Field(
        default=False, description="responses cut at max_new_tokens contribute no gradient (DAPO)"
    )
    epochs: StrictInt = Field(default=1, ge=1, description="optimisation epochs over each rollout")
    minibatches: StrictInt = Field(
        default=1, ge=1, description="optimizer steps per epoch over a rollout"
    )

    @model_validator(mode="after")
    def _keys_are_used(self) -> ObjectiveConfig:
        if self.name == "cispo" and self.dual_clip is not None:
            raise ValueError(
                f"objective.dual_clip: {self.dual_clip:g} changes nothing with objective.name: "
                "cispo, whose weights clip_high bounds for either sign; set it to null"
            )
        return self


class GradientsConfig(Section):
    """How per-sample gradients are kept and compared."""

    sketch: Annotated[PathText, AfterValidator(_sketch)] = Field(
        default="none",
        description="Gram matrix from random sketches of this kind, "
        f"{choices('sketch')}; none: exact, from the gradients themselves",
    )
    sketch_options: dict[str, Any] = Field(
        default={}, description="options of your own sketch, checked by its annotations"
    )
    sketch_dim: StrictInt = Field(default=8192, ge=1, description="length k of a sketch")
    store: Literal["auto", "device", "host", "recompute"] = Field(
        default="auto",
        description="device: keep every sample's gradient beside the model; host: in (pinned) host "
        "memory; recompute: keep its sketch alone and run a second, weighted, backward pass (least "
        "memory, more time; up to 64 MiB of gradients wait to be sketched together, which of a "
        "tiny model are all); auto: the first of these that fits",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="dtype in which the stores device and host keep gradients"
    )

    @model_validator(mode="after")
    def _recompute_needs_a_sketch(self) -> GradientsConfig:
        if self.store == "recompute" and self.sketch == "none":
            raise ValueError(
                "gradients.store: recompute keeps no gradients to compare; set gradients.sketch to "
                f"one of {', '.join(names('sketch'))}"
            )
        return self


class ProgramConfig(Section):
    """What an aggregator, whichever it is, is given of the samples' gradients."""

    norms: Literal["none", "clip", "unit"] = Field(
        default="none",
        description="length of each sample's own gradient: none, as it is (the papers'); clip: cut "
        "to the quantile program.norm_quantile of the update's norms; unit: all of them as long as "
        "their median",
    )
    norm_quantile: Number = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="with norms clip: the quantile of the norms that is the limit",
    )
    norms_in: Literal["all", "program"] = Field(
        default="all",
        description="where program.norms counts: all, in g_0 and the program; program: g_0 stays "
        "the mean of the gradients as they are",
    )
    tasks: Literal["sample", "group"] = Field(
        default="sample",
        description="what the program protects: sample, every response (the paper's); group: the "
        "sum of a prompt's positive responses, and that of its negative ones",
    )
    average: Literal["mean", "geometric_median"] = Field(
        default="mean",
        description="g_0: the mean over samples, or the geometric median of the prompts' own "
        "means, which a few odd prompts cannot move far",
    )
    blocks: Literal["whole", "layer", "module"] = Field(
        default="whole",
        description="one program for the whole gradient (the paper's), or one for each decoder "
        "layer or each module with LoRA factors (exact Gram matrices only)",
    )

    @model_validator(mode="after")
    def _group_sums_have_one_average(self) -> ProgramConfig:
        if self.tasks == "group" and self.norms != "none" and self.norms_in == "program":
            raise ValueError(
                "program.norms_in: program does not go with program.tasks: group, whose sums make "
                "up g_0 too; set program.norms_in to all"
            )
        return self


class CapoConfig(Section):
    """The second-order cone program of CAPO."""

    radius: Annotated[float | str, BeforeValidator(_radius)] = Field(
        default=0.5,
        description="trust-region radius C, relative to ||g_0||; auto: in every step the one of 0, "
        "0.1, 0.25, 0.5 and 1 whose aggregates of half of the prompts agree best with the "
        "responses to the other half (smoothed over steps)",
    )
    region: Literal["difference", "norm"] = Field(
        default="difference",
        description="trust region: ||g - g_0|| <= C ||g_0||, or the ablation ||g|| <= C ||g_0||",
    )
    slack_price: Number = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=True,
        description="price rho of violating a negative's constraint; .inf = hard",
    )
    positive_share: Number | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="least share of the program's weights that stays on positive responses, in "
        "place of slack_price: the price is then (1 - share) / (share n) for each of n negatives",
    )
    on_infeasible: Literal["elastic", "vanilla"] = Field(
        default="elastic",
        description="with slack_price .inf and no feasible point: what to apply instead",
    )

    @model_validator(mode="after")
    def _one_price(self) -> CapoConfig:
        usual = type(self).model_fields["slack_price"].default
        if self.positive_share is not None and self.slack_price != usual:
            raise ValueError(
                "capo.slack_price and capo.positive_share both set a price; leave one out"
            )
        return self


class CagradConfig(Section):
    """CAGrad, where it is the aggregator."""

    radius: Number = Field(
        default=0.5, ge=0, description="radius c of CAGrad's ball, relative to ||g_0||"
    )
