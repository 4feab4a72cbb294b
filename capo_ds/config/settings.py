"""The typed settings of a run: every key with its type, its default and its meaning."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from capo_ds.config.paths import PathText

AGGREGATORS = ("mean", "capo", "mgda", "pcgrad", "cagrad", "config")  # and torchjd's


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a valid number, not true or false")
    return value


def _known_aggregator(name: str) -> str:
    if name not in AGGREGATORS and not name.startswith("torchjd:") and ".py:" not in name:
        raise ValueError(
            f"choose among {', '.join(AGGREGATORS)}, torchjd:NAME, FILE.py:FUNCTION; GRPO's is mean"
        )
    return name


def _radius(value: Any) -> float | str:
    if value == "auto":
        return value
    try:
        radius = float(_no_flag(value))
    except (TypeError, ValueError):
        radius = math.nan
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError("input should be auto, or a finite number greater than or equal to 0")
    return radius


PROMPT_TEMPLATES = ("plain", "base", "chat")

# Not strict: YAML reads 1e-5 as a string.
Number = Annotated[float, BeforeValidator(_no_flag)]
DecayRate = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(ge=0)]
Level = Annotated[StrictInt, Field(ge=1, le=5)]


class Section(BaseModel):
    """A group of settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class ModelConfig(Section):
    """The policy: a Hugging Face causal LM, and the LoRA adapter that RL trains on it."""

    path: PathText = Field(
        "builtin:tiny", description="hub name, local folder, or builtin:tiny (ships with capo_ds)"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of the frozen base weights and of forward passes; LoRA factors are "
        "kept, and their gradients aggregated, in float32 in any case",
    )
    lora_rank: StrictInt = Field(64, ge=1, description="rank r of the LoRA factors")
    lora_alpha: Number = Field(128, gt=0, description="LoRA scale: the update is alpha / r * B A")
    rslora: StrictBool = Field(False, description="scale by alpha / sqrt(r) instead (rsLoRA)")
    lora_targets: Annotated[list[str], Field(min_length=1)] | str = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="the linear layers that get LoRA factors: their names, or one text: all-linear "
        "(all but the output layer), or a regular expression of whole names; layers outside the "
        "language model (vision and audio towers) never get any",
    )
    lora_exclude: list[str] | str = Field(
        [],
        description="names of layers among them that get none, or a regular expression of whole "
        "names",
    )
    adapter: str | None = Field(
        None,
        description="folder or hub name of a PEFT LoRA adapter to go on from, with its own rank, "
        "alpha and targets in place of the keys above; null: a fresh one",
    )
    reference: Literal["base", "adapter"] = Field(
        "base",
        description="what the KL term is measured to: the base model, or model.adapter as it was",
    )
    gradient_checkpointing: StrictBool = Field(
        False, description="recompute activations in the backward pass to save memory"
    )
    load_in_4bit: StrictBool = Field(
        False,
        description="quantise the base weights to 4 bits as they are read (NF4, by bitsandbytes): "
        "QLoRA",
    )
    attn_implementation: str | None = Field(
        None,
        description="transformers' attention: sdpa, eager, flash_attention_2, ...; null: its own "
        "choice",
    )
    revision: str | None = Field(
        None, description="commit, tag or branch of the model on the hub; null: its newest"
    )
    trust_remote_code: StrictBool = Field(
        False, description="run Python code that the model brings along"
    )

    @model_validator(mode="after")
    def _reference_is_there(self) -> ModelConfig:
        if self.reference == "adapter" and self.adapter is None:
            raise ValueError("model.reference: adapter, but model.adapter is not set; set it")
        return self


class DatasetConfig(Section):
    """A set of problems: generated, of the hub, or of the user's own files."""

    name: Literal["arithmetic", "gsm8k", "math", "amc23", "aime24", "custom"] = Field(
        "arithmetic",
        description="the data set: arithmetic is generated; custom is your own file (give its path "
        "and columns)",
    )
    path: PathText | None = Field(
        None,
        description="hub name, or local file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, "
        "each also as .gz, .bz2, .xz or .zst) or folder (of such files, or of "
        "save_to_disk); null: the data set's own place on the hub",
    )
    subset: str | None = Field(None, description="configuration on the hub; null: its own")
    prompt_column: str | None = Field(
        None, description="column of the problem's text; null: the data set's own"
    )
    answer_column: str | None = Field(
        None, description="column of the reference answer; null: the data set's own"
    )
    solution_column: str | None = Field(
        None, description="column of a worked solution, for the warm-up; null: the data set's own"
    )
    levels: list[Level] = Field(
        [1, 2, 3], min_length=1, description="levels of difficulty of the arithmetic task, 1 to 5"
    )
    asks: Literal["total", "before", "backwards"] = Field(
        "total",
        description="what the arithmetic task asks for: the number at the end, that before the "
        "last operation, or the digits of the last in reverse order",
    )
    seed: StrictInt = Field(0, ge=0, description="seed that generates or shuffles the problems")
    label: str | None = Field(
        None, min_length=1, description="name in tables and metrics; null: that of the data set"
    )
    shuffle: StrictBool = Field(
        False, description="shuffle a data set's rows, so that a limit draws them at random"
    )

    @model_validator(mode="after")
    def _custom_is_described(self) -> DatasetConfig:
        if self.name == "custom":
            for key in ("path", "prompt_column", "answer_column"):
                if getattr(self, key) is None:
                    raise ValueError(
                        f"data set 'custom' needs {key}: set task.{key}, or {key} of the entry in "
                        "task.mixture or evaluation.benchmarks"
                    )
        return self

    @property
    def title(self) -> str:
        return self.label or self.name


class TrainingSetConfig(DatasetConfig):
    """Problems that are trained on, and the test problems that go with them."""

    train_split: str | None = Field(None, description="split to train on; null: the data set's own")
    test_path: PathText | None = Field(
        None, description="where the test problems are; null: where the training problems are"
    )
    test_split: str | None = Field(None, description="split to test on; null: the data set's own")
    train_problems: StrictInt | None = Field(
        None, ge=1, description="training problems at most; null: all (arithmetic: 4096)"
    )
    test_problems: StrictInt | None = Field(
        None, ge=1, description="test problems at most; null: all (arithmetic: 256)"
    )


class MixtureEntryConfig(TrainingSetConfig):
    """One entry of task.mixture."""

    weight: Number = Field(
        1.0, gt=0, description="its share of a step's prompts is this over the sum of all weights"
    )


class TaskConfig(TrainingSetConfig):
    """What is trained on: one data set, described here, or the mixture of several."""

    mixture: list[MixtureEntryConfig] = Field(
        [],
        description="data sets that every step draws its prompts from, each with a weight and a "
        "label of its own; the first is the headline in testing; empty: the one described by the "
        "other keys of task",
    )

    @model_validator(mode="after")
    def _mixture_stands_alone(self) -> TaskConfig:
        _refuse_doubles("task.mixture", [entry.title for entry in self.mixture])
        for key, field in TrainingSetConfig.model_fields.items():
            if self.mixture and getattr(self, key) != field.default:
                raise ValueError(
                    f"task.{key}: {getattr(self, key)!r} says nothing beside task.mixture; write "
                    f"{key} into the mixture's entries"
                )
        return self

    @property
    def entries(self) -> list[TrainingSetConfig]:
        """The data sets that are trained on."""
        return [*self.mixture] or [self]

    @property
    def weights(self) -> list[float]:
        """Their shares of a step's prompts, with sum 1."""
        weights = [entry.weight for entry in self.mixture] or [1.0]
        return [weight / sum(weights) for weight in weights]


class BenchmarkConfig(DatasetConfig):
    """One entry of evaluation.benchmarks."""

    split: str | None = Field(None, description="split; null: the data set's own for testing")


class PromptConfig(Section):
    """How a problem becomes the text that the model reads."""

    template: str = Field(
        "plain",
        description="plain ({problem} {instruction} and a line break: the embedded model's), base "
        "(Question: ... Answer:, for base models), chat (the tokenizer's chat template), or your "
        "own text with {problem} and, if you like, {instruction} in it",
    )
    instruction: str | None = Field(
        None, description="what is asked of the answer; null: the template's own words"
    )
    system: str | None = Field(
        None,
        description="system message of template chat, for conversations that have none of their "
        "own",
    )
    template_kwargs: dict[str, Any] = Field(
        {},
        description="variables of the tokenizer's chat template, e.g. {enable_thinking: false}",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="texts, special tokens among them, that end a response; they are cut off "
        "before it is judged",
    )

    @model_validator(mode="after")
    def _template_is_known(self) -> PromptConfig:
        if self.template not in PROMPT_TEMPLATES and "{problem}" not in self.template:
            raise ValueError(
                f"prompt.template: {self.template!r} is none of {', '.join(PROMPT_TEMPLATES)} and "
                "has no {problem} in it"
            )
        for key in ("system", "template_kwargs"):
            if getattr(self, key) and self.template != "chat":
                raise ValueError(
                    f"prompt.{key}: only the tokenizer's chat template has a place for it; set "
                    "prompt.template to chat, or write the text into your own template"
                )
        return self


class RewardFunctionConfig(Section):
    """One entry of reward.functions."""

    function: PathText = Field(
        description="rule (1, -0.5, -1: right, wrong, not in the format), or your own as "
        "file.py:function, called with lists prompts, completions, references and the data set's "
        "columns by keyword; it returns a list of numbers"
    )
    weight: Number = Field(1.0, description="its weight in the sum that is the reward")


class RewardConfig(Section):
    """What a response is paid for, and how its answer is compared with the reference."""

    functions: list[RewardFunctionConfig] = Field(
        [RewardFunctionConfig(function="rule")],
        min_length=1,
        description="the reward is their weighted sum; accuracy is always the rule's",
    )
    time_limit: Number = Field(
        5.0, gt=0, description="seconds for one symbolic comparison; then it counts as wrong"
    )
    workers: StrictInt = Field(
        2, ge=1, description="processes of a rank that compare answers by math-verify"
    )

    @model_validator(mode="after")
    def _functions_differ(self) -> RewardConfig:
        _refuse_doubles("reward.functions", [entry.function for entry in self.functions])
        return self


class TruncatedSampling(Section):
    """Tokens that may be drawn; keys of rollout and of evaluation."""

    top_p: Number = Field(
        1.0,
        gt=0,
        le=1,
        description="draw from the likeliest tokens that together have this probability; 1 = all "
        "(less makes a rollout off-policy: docs/prompts.md)",
    )
    top_k: StrictInt = Field(0, ge=0, description="draw from this many likeliest tokens; 0 = all")
    min_p: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="draw from tokens of at least this probability relative to the likeliest; "
        "0 = all",
    )

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class EvaluationConfig(TruncatedSampling):
    """Accuracy on benchmarks, in training and by launchers/evaluate.py."""

    benchmarks: list[BenchmarkConfig] = Field(
        [], description="what is evaluated, the headline first; empty: the task's test problems"
    )
    limit: StrictInt | None = Field(
        None, ge=1, description="problems of each benchmark at most; null: all"
    )
    samples: StrictInt = Field(
        1, ge=1, description="responses to each problem (k of avg@k, pass@k)"
    )
    temperature: Number = Field(0.0, ge=0, description="sampling temperature; 0 = greedy")
    max_new_tokens: StrictInt | None = Field(
        None, ge=1, description="longest response, in tokens; null: rollout.max_new_tokens"
    )
    seed: StrictInt = Field(0, ge=0, description="seed of the sampling")
    adapter: PathText | None = Field(
        None, description="folder of a PEFT adapter that launchers/evaluate.py puts on the model"
    )
    output_dir: PathText = Field(
        "runs/evaluation", description="where launchers/evaluate.py writes results and completions"
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluation.samples: {self.samples} greedy responses are all the same; set "
                "evaluation.temperature"
            )
        if self.truncates and self.temperature == 0:
            raise ValueError(
                "evaluation.top_p, top_k, min_p: greedy decoding takes the likeliest token in any "
                "case; set evaluation.temperature, or leave them out"
            )
        _refuse_doubles("evaluation.benchmarks", [entry.title for entry in self.benchmarks])
        return self


def _refuse_doubles(key: str, names: list[str]) -> None:
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{key}: {', '.join(doubles)} is there twice; remove or relabel one")


class RolloutConfig(TruncatedSampling):
    """Sampling of responses from the current policy."""

    prompts_per_step: StrictInt = Field(64, ge=1, description="prompts in a step, over all ranks")
    group_size: StrictInt = Field(8, ge=2, description="responses sampled per prompt (G)")
    max_new_tokens: StrictInt = Field(48, ge=1, description="longest response, in tokens")
    max_prompt_tokens: StrictInt = Field(
        1024, ge=1, description="prompts longer than this are left out (and counted)"
    )
    temperature: Number = Field(1.0, gt=0, description="sampling temperature")
    batch_size: StrictInt = Field(
        256, ge=1, description="sequences that one rank generates at a time (memory)"
    )
    sampler: Literal["hf", "vllm", "server"] = Field(
        "hf",
        description="hf: the training model itself; vllm: an engine inside every rank, asleep "
        "while the trainer works; server: a vLLM server elsewhere (launchers/vllm_server.py)",
    )
    vllm_cache_gib: Number = Field(4.0, gt=0, description="KV cache of a vLLM engine, in GiB")
    tensor_parallel: StrictInt = Field(
        1, ge=1, description="neighbouring ranks that share one vLLM engine"
    )
    server_url: str = Field(
        "http://127.0.0.1:8000", description="address of the server, if it is the sampler"
    )
    timeout: Number = Field(
        1800.0, gt=0, description="seconds that any wait for vLLM may take before the run ends"
    )
    probe_bound: Number | None = Field(
        None,
        gt=0,
        description="largest mean difference between vLLM's and the trainer's log-probabilities "
        "over a sequence of the probe that follows each weight sync, in nats a token; the run "
        "ends beyond it; null: by model.dtype and the size of the logits (float32 0.001, "
        "bfloat16 0.1 and more where logits exceed 6)",
    )
    importance_correction: Literal["none", "token", "sequence"] = Field(
        "none",
        description="weigh the objective by the truncated ratio of the trainer's probabilities to "
        "the sampler's, of each token or of the whole response",
    )
    importance_cap: Number = Field(2.0, gt=0, description="the ratio is truncated above this")


class ObjectiveConfig(Section):
    """The GRPO objective; each choice that papers make differently is one key."""

    loss_aggregation: Literal["sequence_mean", "token_mean", "fixed_length"] = Field(
        "sequence_mean",
        description="how token terms become one objective: mean over each response then over "
        "responses (GRPO); mean over all tokens (DAPO); sum over a response divided by "
        "rollout.max_new_tokens (Dr. GRPO)",
    )
    scale_advantages: StrictBool = Field(
        True, description="divide advantages by the group's standard deviation (off: Dr. GRPO)"
    )
    clip_low: Number = Field(0.2, ge=0, lt=1, description="token ratio is clipped below 1 - this")
    clip_high: Number = Field(
        0.2, ge=0, description="token ratio is clipped above 1 + this (0.28 in DAPO)"
    )
    dual_clip: Number | None = Field(
        None,
        gt=1,
        description="tokens of negative advantage whose ratio is above this have no gradient (dual "
        "clip, Ye et al. 2020; 3 in verl); null: no such bound",
    )
    kl_weight: Number = Field(
        0.001, ge=0, description="weight beta of the k3 KL estimate to the base model; 0 skips it"
    )
    mask_truncated: StrictBool = Field(
        False, description="responses cut at max_new_tokens contribute no gradient (DAPO)"
    )
    epochs: StrictInt = Field(1, ge=1, description="optimisation epochs over each rollout")
    minibatches: StrictInt = Field(1, ge=1, description="optimizer steps per epoch over a rollout")


class GradientsConfig(Section):
    """How per-sample gradients are kept and compared."""

    sketch: Literal["none", "rademacher", "sparse", "outer"] = Field(
        "none",
        description="Gram matrix from random sketches of this kind (rademacher is the paper's); "
        "none: exact, from the gradients themselves",
    )
    sketch_dim: StrictInt = Field(8192, ge=1, description="length k of a sketch")
    store: Literal["auto", "device", "host", "recompute"] = Field(
        "auto",
        description="device: keep every sample's gradient beside the model; host: in (pinned) host "
        "memory; recompute: keep its sketch alone and run a second, weighted, backward pass (least "
        "memory, more time); auto: the first of these that fits",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype in which the stores device and host keep gradients"
    )

    @model_validator(mode="after")
    def _recompute_needs_a_sketch(self) -> GradientsConfig:
        if self.store == "recompute" and self.sketch == "none":
            raise ValueError(
                "gradients.store: recompute keeps no gradients to compare; set gradients.sketch to "
                "rademacher, sparse or outer"
            )
        return self


class ProgramConfig(Section):
    """What an aggregator, whichever it is, is given of the samples' gradients."""

    norms: Literal["none", "clip", "unit"] = Field(
        "none",
        description="length of each sample's own gradient: none, as it is (the papers'); clip: cut "
        "to the quantile program.norm_quantile of the update's norms; unit: all of them as long as "
        "their median",
    )
    norm_quantile: Number = Field(
        0.5, gt=0, lt=1, description="with norms clip: the quantile of the norms that is the limit"
    )
    norms_in: Literal["all", "program"] = Field(
        "all",
        description="where program.norms counts: all, in g_0 and the program; program: g_0 stays "
        "the mean of the gradients as they are",
    )
    tasks: Literal["sample", "group"] = Field(
        "sample",
        description="what the program protects: sample, every response (the paper's); group: the "
        "sum of a prompt's positive responses, and that of its negative ones",
    )
    average: Literal["mean", "geometric_median"] = Field(
        "mean",
        description="g_0: the mean over samples, or the geometric median of the prompts' own "
        "means, which a few odd prompts cannot move far",
    )
    blocks: Literal["whole", "layer", "module"] = Field(
        "whole",
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
        0.5,
        description="trust-region radius C, relative to ||g_0||; auto: in every step the one of 0, "
        "0.1, 0.25, 0.5 and 1 whose aggregates of half of the prompts agree best with the "
        "responses to the other half (smoothed over steps)",
    )
    region: Literal["difference", "norm"] = Field(
        "difference",
        description="trust region: ||g - g_0|| <= C ||g_0||, or the ablation ||g|| <= C ||g_0||",
    )
    slack_price: Number = Field(
        10.0,
        gt=0,
        allow_inf_nan=True,
        description="price rho of violating a negative's constraint; .inf = hard",
    )
    positive_share: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="least share of the program's weights that stays on positive responses, in "
        "place of slack_price: the price is then (1 - share) / (share n) for each of n negatives",
    )
    on_infeasible: Literal["elastic", "vanilla"] = Field(
        "elastic", description="with slack_price .inf and no feasible point: what to apply instead"
    )


class CagradConfig(Section):
    """CAGrad, where it is the aggregator."""

    radius: Number = Field(0.5, ge=0, description="radius c of CAGrad's ball, relative to ||g_0||")


class OptimizerConfig(Section):
    """AdamW on the LoRA factors."""

    learning_rate: Number = Field(1e-6, gt=0, description="peak learning rate")
    betas: tuple[DecayRate, DecayRate] = Field(
        (0.9, 0.999), description="Adam's moment decay rates, each in [0, 1)"
    )
    epsilon: Number = Field(
        1e-8,
        gt=0,
        description="Adam's epsilon; far above the gradient's entries it makes Adam SGD with "
        "momentum, at the rate learning_rate / epsilon",
    )
    weight_decay: Number = Field(0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: Number = Field(1.0, ge=0, description="gradient clipping by norm; 0 = none")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning-rate schedule after the warm-up"
    )
    warmup_steps: StrictInt = Field(
        0, ge=0, description="optimizer steps of linear learning-rate warm-up"
    )


class TrainConfig(Section):
    """The run: its length, its outputs, its resources."""

    steps: StrictInt = Field(100, ge=1, description="rollout steps")
    micro_batch_size: StrictInt = Field(
        16, ge=1, description="sequences per forward/backward on a rank"
    )
    seed: StrictInt = Field(0, ge=0, description="seed of sampling and of the LoRA initialisation")
    eval_every: StrictInt = Field(20, ge=0, description="steps between evaluations; 0 = never")
    save_every: StrictInt = Field(
        50, ge=0, description="steps between checkpoints; 0 = only at the end"
    )
    keep_checkpoints: StrictInt = Field(
        2, ge=1, description="newest checkpoints kept, beside the best evaluated one"
    )
    log_samples_every: StrictInt = Field(
        10,
        ge=0,
        description="every response of every so many steps goes to samples.jsonl, from the first "
        "step on, with its verdict, reward, gradient norm, cosines and weight (about 1 kB each); "
        "0 = never",
    )
    report_to: list[Literal["tensorboard", "wandb", "comet", "csv"]] = Field(
        ["tensorboard"],
        description="where metrics go beside metrics.jsonl; Weights & Biases and Comet also get "
        "settings and samples",
    )
    output_dir: PathText = Field("runs/default", description="folder of everything the run writes")
    resume: Literal["auto", "never"] = Field(
        "never", description="auto: go on from the newest checkpoint of output_dir, if any"
    )


class WarmupConfig(Section):
    """Supervised warm-up (launchers/warmup.py): full fine-tuning on worked solutions."""

    output_dir: PathText = Field("runs/warmup", description="where model and tokenizer are saved")
    save_every: StrictInt = Field(
        200, ge=0, description="steps between checkpoints, of which the newest is kept; 0 = none"
    )
    resume: Literal["auto", "never"] = Field(
        "never",
        description="auto: go on from the checkpoint in output_dir, if any, on as many ranks",
    )
    learning_rate: Number = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    batch_size: StrictInt = Field(
        64, ge=1, description="sequences per optimizer step, over all ranks"
    )
    max_steps: StrictInt = Field(1000, ge=1, description="optimizer steps at the most")
    eval_every: StrictInt = Field(50, ge=1, description="steps between greedy evaluations")
    stop_accuracy: Number = Field(
        0.4, gt=0, le=1, description="stop at the first evaluation with at least this accuracy"
    )
    styles: dict[Literal["worked", "direct", "plain"], Share] = Field(
        {"worked": 1.0},
        description="shares of demonstration styles: worked (steps, boxed answer), direct (boxed "
        "answer alone), plain (steps, answer not boxed)",
    )
    seed: StrictInt = Field(0, ge=0, description="seed of initialisation and order")


class Config(Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    prompt: PromptConfig = PromptConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    aggregator: Annotated[PathText, AfterValidator(_known_aggregator)] = Field(
        "capo",
        description="how per-sample gradients become one: capo, mean (GRPO), mgda, pcgrad, cagrad, "
        "config, a Gramian weighting of the torchjd library as torchjd:NAME, or your own function "
        "of the Gram matrix as file.py:function",
    )
    program: ProgramConfig = ProgramConfig()
    measure_heldout: StrictBool = Field(
        True,
        description="report conflict on held-out samples: each half of the prompts is aggregated "
        "alone and measured on the other (two solves more a step, no further pass)",
    )
    measure_conflict: StrictBool = Field(
        True,
        description="with aggregator mean: form per-sample gradients all the same and report "
        "conflict (off: plain backward, faster)",
    )
    gradients: GradientsConfig = GradientsConfig()
    capo: CapoConfig = CapoConfig()
    cagrad: CagradConfig = CagradConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: PathText = Field("ds_configs/zero2.json", description="DeepSpeed JSON (ZeRO stage)")
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

    @model_validator(mode="after")
    def _sampler_has_the_same_base(self) -> Config:
        if self.model.load_in_4bit and self.rollout.sampler != "hf":
            raise ValueError(
                "model.load_in_4bit: vLLM would sample from the weights as they were before, not "
                "from the policy; set rollout.sampler to hf"
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
    def on_policy(self) -> bool:
        """One optimizer step per rollout: the behaviour policy is the one being differentiated."""
        return self.objective.epochs == 1 and self.objective.minibatches == 1
