"""Settings of the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, model_validator

from capo_ds.config.paths import PathText
from capo_ds.config.section import Number, Section


class ModelConfig(Section):
    """The policy: a Hugging Face causal LM, and the LoRA adapter that RL trains on it."""

    path: PathText = Field(
        default="builtin:tiny",
        description="hub name, local folder, or builtin:tiny (ships with capo_ds)",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of the frozen base weights and of forward passes; LoRA factors are "
        "kept, and their gradients aggregated, in float32 in any case",
    )
    lora_rank: StrictInt = Field(default=64, ge=1, description="rank r of the LoRA factors")
    lora_alpha: Number = Field(
        default=128, gt=0, description="LoRA scale: the update is alpha / r * B A"
    )
    rslora: StrictBool = Field(
        default=False, description="scale by alpha / sqrt(r) instead (rsLoRA)"
    )
    lora_targets: Annotated[list[str], Field(min_length=1)] | str = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"],
        description="the linear layers that get LoRA factors: their names, or one text: all-linear "
        "(all but the output layer), or a regular expression of whole names; layers outside the "
        "language model (vision and audio towers) never get any",
    )
    lora_exclude: list[str] | str = Field(
        default=[],
        description="names of layers or whole blocks (mlp) that get none, or a regular expression "
        "of whole names",
    )
    adapter: str | None = Field(
        default=None,
        description="folder or hub name of a PEFT LoRA adapter to go on from, with its own rank, "
        "alpha and targets in place of the keys above; null: a fresh one",
    )
    reference: Literal["base", "adapter"] = Field(
        default="base",
        description="what the KL term is measured to: the base model, or model.adapter as it was",
    )
    gradient_checkpointing: StrictBool = Field(
        default=False, description="recompute activations in the backward pass to save memory"
    )
    compile: StrictBool = Field(
        default=False,
        description="compile the decoder's layers for passes with gradients (torch.compile): "
        "faster steps after seconds to minutes of compiling; not at ZeRO 3",
    )
    load_in_4bit: StrictBool = Field(
        default=False,
        description="quantise the base weights to 4 bits as they are read (NF4, by bitsandbytes): "
        "QLoRA",
    )
    attn_implementation: str | None = Field(
        default=None,
        description="transformers' attention: sdpa, eager, flash_attention_2, ...; null: its own "
        "choice",
    )
    revision: str | None = Field(
        default=None, description="commit, tag or branch of the model on the hub; null: its newest"
    )
    trust_remote_code: StrictBool = Field(
        default=False, description="run Python code that the model brings along"
    )

    @model_validator(mode="after")
    def _layers_can_be_compiled(self) -> ModelConfig:
        if self.compile and self.load_in_4bit:
            raise ValueError(
                "model.compile: layers of 4-bit weights are not compiled; set it to false"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_there(self) -> ModelConfig:
        if self.reference == "adapter" and self.adapter is None:
            raise ValueError("model.reference: adapter, but model.adapter is not set; set it")
        return self
