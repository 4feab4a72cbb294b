"""All settings of a run, and what must hold between its sections.

The sections stand by theme in `model`, `task`, `sampling`, `method` and `training`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, model_validator

from capo_ds.config.method import (
    CagradConfig,
    CapoConfig,
    GradientsConfig,
    ObjectiveConfig,
    ProgramConfig,
    known_aggregator,
)
from capo_ds.config.model import ModelConfig
from capo_ds.config.paths import PathText
from capo_ds.config.sampling import EvaluationConfig, RolloutConfig
from capo_ds.config.section import Section
from capo_ds.config.task import PromptConfig, RewardConfig, TaskConfig
from capo_ds.config.training import OptimizerConfig, TrainConfig, WarmupConfig
from capo_ds.parts import choices, names


class Config(Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    aggregator: Annotated[PathText, AfterValidator(known_aggregator)] = Field(
        default="capo",
        description=f"how per-sample gradients become one: {choices('aggregator')}",
    )
    aggregator_options: dict[str, Any] = Field(
        default={},
        description="options of your own aggregator or of torchjd's, checked by its annotations "
        "(those of capo and cagrad are sections)",
    )
    program: ProgramConfig = ProgramConfig()
    measure_heldout: StrictBool = Field(
        default=True,
        description="report conflict on held-out samples: each half of the prompts is aggregated "
        "alone and measured on the other (two solves more a step, no further pass; an "
        "aggregator of your own is called three times an update)",
    )
    measure_conflict: StrictBool = Field(
        default=True,
        description="with aggregator mean: form per-sample gradients all the same and report "
        "conflict (off: plain backward, faster)",
    )
    gradients: GradientsConfig = GradientsConfig()
    capo: CapoConfig = CapoConfig()
    cagrad: CagradConfig = CagradConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: PathText = Field(
        default="ds_configs/zero2.json", description="DeepSpeed JSON (ZeRO stage)"
    )
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    warmup: WarmupConfig = WarmupConfig()

    @model_validator(mode="after")
    def _minibatches_fit(self) -> Config:
        if self.objective.minibatches > self.rollout.prompts_per_step:
            raise ValueError(
                f"objective.minibatches: {self.objective.minibatches} is more than "
                f"rollout.prompts_per_step = {self.rollout.prompts_per_step}; lower it"
            )
        return self

    @classmethod
    def aggregators_with_sections(cls) -> list[str]:
        """Those whose options are a section of their name."""
        return [name for name in names("aggregator") if name in cls.model_fields]

    @model_validator(mode="after")
    def _options_have_one_place(self) -> Config:
        if self.aggregator_options and self.aggregator in self.aggregators_with_sections():
            raise ValueError(
                f"aggregator_options: the options of {self.aggregator} are the section "
                f"{self.aggregator}; write them there"
            )
        return self

    @model_validator(mode="after")
    def _sampler_has_the_same_base(self) -> Config:
        if self.model.load_in_4bit and self.rollout.sampler in ("vllm", "server"):
            raise ValueError(
                "model.load_in_4bit: vLLM would sample from the weights as they were before, not "
                "from the policy; set rollout.sampler to hf"
            )
        return self

    @model_validator(mode="after")
    def _sampler_can_be_asked_early(self) -> Config:
        ahead, sampler = self.rollout.ahead, self.rollout.sampler
        if ahead and sampler in ("hf", "vllm"):
            raise ValueError(
                f"rollout.ahead: {ahead} needs a sampler outside the training process, which "
                f"{sampler} is not; set rollout.sampler to process or server, or rollout.ahead to 0"
            )
        if ahead and self.rollout.dynamic_sampling:
            raise ValueError(
                f"rollout.dynamic_sampling: {self.rollout.dynamic_sampling} asks for responses "
                f"once a step's are judged, when with rollout.ahead = {ahead} the weights that "
                "sampled them are gone; set one of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _ratio_and_correction_fit(self) -> Config:
        if self.ratio_to == "sampler" and self.importance_correction == "sequence":
            raise ValueError(
                "rollout.importance_correction: sequence weighs whole responses, where the ratio "
                "of each token to the sampler's has its correction in it; set it to token, or "
                "objective.ratio_to to trainer"
            )
        return self

    @model_validator(mode="after")
    def _program_is_used(self) -> Config:
        program = self.program
        if self.capo.radius == "auto" and self.capo.region == "norm":
            raise ValueError(
                "capo.radius: auto means nothing with capo.region: norm, whose direction does not "
                "depend on C; set a number"
            )
        if program.blocks != "whole" and self.gradients.sketch != "none":
            raise ValueError(
                f"program.blocks: {program.blocks} needs exact Gram matrices; set gradients.sketch "
                "to none"
            )
        if self.aggregator != "mean":
            return self
        if program != ProgramConfig() and not self.measure_conflict:
            raise ValueError(
                "measure_conflict: false gives aggregator mean no samples' own gradients, which "
                "the settings under program need; set it to true"
            )
        if program.norms != "none" and program.norms_in == "program":
            raise ValueError(
                "program.norms_in: program changes nothing with aggregator mean, which applies "
                "g_0; set it to all"
            )
        return self

    @property
    def uses_per_sample_gradients(self) -> bool:
        return self.aggregator != "mean" or self.measure_conflict

    @property
    def ratio_to(self) -> str:
        """`objective.ratio_to`, decided."""
        return self.objective.ratio_to or ("sampler" if self.rollout.ahead else "trainer")

    @property
    def importance_correction(self) -> str:
        """`rollout.importance_correction`, decided."""
        return self.rollout.importance_correction or ("token" if self.rollout.ahead else "none")

    @property
    def on_policy(self) -> bool:
        """One optimizer step per rollout: the behaviour policy is the one being differentiated."""
        return self.objective.epochs == 1 and self.objective.minibatches == 1
