"""Settings of sampling: in training and for evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StrictInt, model_validator

from capo_ds.config.paths import PathText
from capo_ds.config.section import Number, Section, refuse_doubles
from capo_ds.config.task import BenchmarkConfig
from capo_ds.parts import choices, known


def _sampler(name: str) -> str:
    return known("sampler", name)


def _addresses(url: str | list[str]) -> str | list[str]:
    urls = [url] if isinstance(url, str) else url
    if not urls:
        raise ValueError("names no server; give at least one address")
    for each in urls:
        address = urlsplit(each)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"{each!r} is no address; give http://HOST:PORT")
    refuse_doubles("rollout.server_url", [each.rstrip("/") for each in urls], "remove one")
    return url


TOP_P = "draw from the likeliest tokens that together have this probability; 1 = all"


class TruncatedSampling(Section):
    """Tokens that may be drawn; keys of rollout and of evaluation."""

    top_p: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description=TOP_P,
    )
    top_k: StrictInt = Field(
        default=0, ge=0, description="draw from this many likeliest tokens; 0 = all"
    )
    min_p: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="draw from tokens of at least this probability relative to the likeliest; "
        "0 = all",
    )

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class RolloutConfig(TruncatedSampling):
    """Sampling of responses from the current policy."""

    top_p: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description=f"{TOP_P} (less makes a rollout off-policy: docs/prompts.md)",
    )
    prompts_per_step: StrictInt = Field(
        default=64, ge=1, description="prompts in a step, over all ranks"
    )
    group_size: StrictInt = Field(default=8, ge=2, description="responses sampled per prompt (G)")
    dynamic_sampling: StrictInt = Field(
        default=0,
        ge=0,
        description="how often a prompt whose responses all get the same reward is replaced by "
        "another of its data set (DAPO's dynamic sampling); 0 = never",
    )
    max_new_tokens: StrictInt = Field(default=48, ge=1, description="longest response, in tokens")
    max_prompt_tokens: StrictInt = Field(
        default=1024, ge=1, description="prompts longer than this are left out (and counted)"
    )
    temperature: Number = Field(default=1.0, gt=0, description="sampling temperature")
    batch_size: StrictInt = Field(
        default=256, ge=1, description="sequences that one rank generates at a time (memory)"
    )
    sampler: Annotated[PathText, AfterValidator(_sampler)] = Field(
        default="hf",
        description=f"what samples: {choices('sampler')}",
    )
    sampler_options: dict[str, Any] = Field(
        default={}, description="options of your own sampler, checked by its annotations"
    )
    vllm_cache_gib: Number = Field(
        default=4.0, gt=0, description="KV cache of a vLLM engine, in GiB"
    )
    tensor_parallel: StrictInt = Field(
        default=1, ge=1, description="neighbouring ranks that share one vLLM engine"
    )
    server_url: Annotated[str | list[str], AfterValidator(_addresses)] = Field(
        default="http://127.0.0.1:8000",
        description="address of the vLLM server, if it is the sampler; of several, a list",
    )
    ahead: StrictInt = Field(
        default=0,
        ge=0,
        description="steps by which responses are asked for before they are learned from, so that "
        "sampling and learning overlap: the responses of a step are always sampled by the weights "
        "of so many steps before (docs/overlap.md); needs the sampler process or server",
    )
    timeout: Number = Field(
        default=1800.0,
        gt=0,
        description="seconds that any wait for a sampler outside the trainer may take before the "
        "run ends",
    )
    probe_bound: Number | None = Field(
        default=None,
        gt=0,
        description="largest mean difference between vLLM's and the trainer's log-probabilities "
        "over a sequence of the probe that follows each weight sync, in nats a token; the run "
        "ends beyond it; null: by model.dtype and the size of the logits (float32 0.001, "
        "bfloat16 0.1 and more where logits exceed 6)",
    )
    importance_correction: Literal["none", "token", "sequence"] | None = Field(
        default=None,
        description="weigh the objective by the truncated ratio of the trainer's probabilities to "
        "the sampler's, of each token or of the whole response; with objective.ratio_to sampler "
        "the objective's own ratio has it as a factor, and token truncates that; null: token "
        "where ahead > 0, else none",
    )
    importance_cap: Number = Field(
        default=2.0, gt=0, description="the ratio is truncated above this"
    )

    @property
    def server_urls(self) -> list[str]:
        """Without slashes at their ends."""
        urls = [self.server_url] if isinstance(self.server_url, str) else self.server_url
        return [url.rstrip("/") for url in urls]


class EvaluationConfig(TruncatedSampling):
    """Accuracy on benchmarks, in training and by launchers/evaluate.py."""

    benchmarks: list[BenchmarkConfig] = Field(
        default=[],
        description="what is evaluated, the headline first; empty: the task's test problems",
    )
    limit: StrictInt | None = Field(
        default=None, ge=1, description="problems of each benchmark at most; null: all"
    )
    samples: StrictInt = Field(
        default=1, ge=1, description="responses to each problem (k of avg@k, pass@k)"
    )
    temperature: Number = Field(default=0.0, ge=0, description="sampling temperature; 0 = greedy")
    max_new_tokens: StrictInt | None = Field(
        default=None, ge=1, description="longest response, in tokens; null: rollout.max_new_tokens"
    )
    seed: StrictInt = Field(default=0, ge=0, lt=2**63, description="seed of the sampling")
    adapter: PathText | None = Field(
        default=None,
        description="folder or hub name of the PEFT adapter that launchers/evaluate.py puts on the "
        "model; null: that of model.adapter, if it is set",
    )
    output_dir: PathText = Field(
        default="runs/evaluation",
        description="where launchers/evaluate.py writes results and completions",
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
        refuse_doubles("evaluation.benchmarks", [entry.title for entry in self.benchmarks])
        return self
