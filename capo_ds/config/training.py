"""Settings of the optimizer, the run and the warm-up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictInt

from capo_ds.config.paths import PathText
from capo_ds.config.section import DecayRate, Number, Section, Share


class OptimizerConfig(Section):
    """AdamW on the LoRA factors."""

    learning_rate: Number = Field(default=1e-6, gt=0, description="peak learning rate")
    betas: tuple[DecayRate, DecayRate] = Field(
        default=(0.9, 0.999), description="Adam's moment decay rates, each in [0, 1)"
    )
    epsilon: Number = Field(
        default=1e-8,
        gt=0,
        description="Adam's epsilon; far above the gradient's entries it makes Adam SGD with "
        "momentum, at the rate learning_rate / epsilon",
    )
    weight_decay: Number = Field(default=0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: Number = Field(
        default=1.0, ge=0, description="gradient clipping by norm; 0 = none"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning-rate schedule after the warm-up"
    )
    warmup_steps: StrictInt = Field(
        default=0, ge=0, description="optimizer steps of linear learning-rate warm-up"
    )


class TrainConfig(Section):
    """The run: its length, its outputs, its resources."""

    steps: StrictInt = Field(default=100, ge=1, description="rollout steps")
    micro_batch_size: StrictInt = Field(
        default=16, ge=1, description="sequences per forward/backward on a rank"
    )
    micro_batch_tokens: StrictInt | None = Field(
        default=None,
        ge=1,
        description="in place of micro_batch_size (not in the warm-up): tokens per "
        "forward/backward on a rank, padding counted; at most as many sequences as fit, one at "
        "least, and fewer where that saves more padding than a pass costs",
    )
    seed: StrictInt = Field(
        default=0,
        ge=0,
        lt=2**63,  # which torch takes
        description="seed of sampling and of the LoRA initialisation",
    )
    eval_every: StrictInt = Field(
        default=20, ge=0, description="steps between evaluations; 0 = never"
    )
    save_every: StrictInt = Field(
        default=50, ge=0, description="steps between checkpoints; 0 = only at the end"
    )
    keep_checkpoints: StrictInt = Field(
        default=2, ge=1, description="newest checkpoints kept, beside the best evaluated one"
    )
    log_samples_every: StrictInt = Field(
        default=10,
        ge=0,
        description="every response of every so many steps goes to samples.jsonl, from the first "
        "step on, with its verdict, reward, gradient norm, cosines and weight (about 1 kB each); "
        "0 = never",
    )
    report_to: list[Literal["tensorboard", "wandb", "comet", "csv"]] = Field(
        default=["tensorboard"],
        description="where metrics go beside metrics.jsonl; Weights & Biases and Comet also get "
        "settings and samples",
    )
    stop_on_divergence: bool = Field(
        default=False,
        description="end the run, with a checkpoint, where it is seen to come apart: reward "
        "fallen, entropy gone or spread, KL far off (docs/training.md); false: a warning, once for "
        "each",
    )
    output_dir: PathText = Field(
        default="runs/default", description="folder of everything the run writes"
    )
    resume: Literal["auto", "never"] = Field(
        default="never", description="auto: go on from the newest checkpoint of output_dir, if any"
    )


class WarmupConfig(Section):
    """Supervised warm-up (launchers/warmup.py): full fine-tuning on worked solutions."""

    output_dir: PathText = Field(
        default="runs/warmup", description="where model and tokenizer are saved"
    )
    save_every: StrictInt = Field(
        default=200,
        ge=0,
        description="steps between checkpoints, of which the newest is kept; 0 = none",
    )
    resume: Literal["auto", "never"] = Field(
        default="never",
        description="auto: go on from the checkpoint in output_dir, if any, on as many ranks",
    )
    learning_rate: Number = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: StrictInt = Field(
        default=64, ge=1, description="sequences per optimizer step, over all ranks"
    )
    max_steps: StrictInt = Field(default=1000, ge=1, description="optimizer steps at the most")
    eval_every: StrictInt = Field(default=50, ge=1, description="steps between greedy evaluations")
    stop_accuracy: Number = Field(
        default=0.4,
        gt=0,
        le=1,
        description="stop at the first evaluation with at least this accuracy",
    )
    styles: dict[Literal["worked", "direct", "plain"], Share] = Field(
        default={"worked": 1.0},
        description="shares of demonstration styles: worked (steps, boxed answer), direct (boxed "
        "answer alone), plain (steps, answer not boxed)",
    )
    seed: StrictInt = Field(
        default=0, ge=0, lt=2**63, description="seed of initialisation and order"
    )
