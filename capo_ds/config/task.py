"""Settings of problems, prompts and rewards."""

from __future__ import annotations

import os
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, model_validator

from capo_ds.config.paths import PathText
from capo_ds.config.section import Number, Section, refuse_doubles
from capo_ds.parts import choices, known, short

PROMPT_TEMPLATES = ("plain", "base", "chat")


def _task(name: str) -> str:
    return known("task", name)


def _verdict(name: str) -> str:
    return known("verdict", name)


def _reward(name: str) -> str:
    return known("reward", name)


def _day(told: Any) -> Any:
    """A day as text; YAML reads 2024-07-26 as a date."""
    if type(told) is date:
        return told.isoformat()
    try:
        if isinstance(told, str) and date.fromisoformat(told).isoformat() == told:
            return told
    except ValueError:
        pass
    raise ValueError("a day is written year-month-day, such as 2024-07-26")


Level = Annotated[StrictInt, Field(ge=1, le=5)]


class DatasetConfig(Section):
    """A set of problems: generated, of the hub, or of the user's own files."""

    name: Annotated[PathText, AfterValidator(_task)] = Field(
        default="arithmetic", description=f"the data set: {choices('task')}"
    )
    options: dict[str, Any] = Field(
        default={}, description="options of your own data set, checked by its annotations"
    )
    verdict: Annotated[PathText, AfterValidator(_verdict)] | None = Field(
        default=None,
        description=f"what judges its responses: {choices('verdict')}; null: the data set's "
        "own, or boxed",
    )
    verdict_options: dict[str, Any] = Field(
        default={}, description="options of your own verdict, checked by its annotations"
    )
    path: PathText | None = Field(
        default=None,
        description="hub name, or local file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, "
        "each also as .gz, .bz2, .xz or .zst) or folder (of such files, or of "
        "save_to_disk); null: the data set's own place on the hub",
    )
    subset: str | None = Field(default=None, description="configuration on the hub; null: its own")
    prompt_column: str | None = Field(
        default=None, description="column of the problem's text; null: the data set's own"
    )
    answer_column: str | None = Field(
        default=None, description="column of the reference answer; null: the data set's own"
    )
    solution_column: str | None = Field(
        default=None,
        description="column of a worked solution, for the warm-up; null: the data set's own",
    )
    levels: list[Level] = Field(
        default=[1, 2, 3],
        min_length=1,
        description="levels of difficulty of the arithmetic task, 1 to 5",
    )
    asks: Literal["total", "before", "backwards"] = Field(
        default="total",
        description="what the arithmetic task asks for: the number at the end, that before the "
        "last operation, or the digits of the last in reverse order",
    )
    seed: StrictInt = Field(
        default=0, ge=0, lt=2**63, description="seed that generates or shuffles the problems"
    )
    label: str | None = Field(
        default=None,
        min_length=1,
        description="name in tables and metrics; null: that of the data set",
    )
    shuffle: StrictBool = Field(
        default=False, description="shuffle a data set's rows, so that a limit draws them at random"
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
        return self.label or short(self.name)


class TrainingSetConfig(DatasetConfig):
    """Problems that are trained on, and the test problems that go with them."""

    train_split: str | None = Field(
        default=None, description="split to train on; null: the data set's own"
    )
    test_path: PathText | None = Field(
        default=None,
        description="where the test problems are; null: where the training problems are",
    )
    test_split: str | None = Field(
        default=None, description="split to test on; null: the data set's own"
    )
    train_problems: StrictInt | None = Field(
        default=None, ge=1, description="training problems at most; null: all (arithmetic: 4096)"
    )
    test_problems: StrictInt | None = Field(
        default=None, ge=1, description="test problems at most; null: all (arithmetic: 256)"
    )


class MixtureEntryConfig(TrainingSetConfig):
    """One entry of task.mixture."""

    weight: Number = Field(
        default=1.0,
        gt=0,
        description="its share of a step's prompts is this over the sum of all weights",
    )


class TaskConfig(TrainingSetConfig):
    """What is trained on: one data set, described here, or the mixture of several."""

    mixture: list[MixtureEntryConfig] = Field(
        default=[],
        description="data sets that every step draws its prompts from, each with a weight and a "
        "label of its own; the first is the headline in testing; empty: the one described by the "
        "other keys of task",
    )

    @model_validator(mode="after")
    def _mixture_stands_alone(self) -> TaskConfig:
        refuse_doubles("task.mixture", [entry.title for entry in self.mixture])
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
    def places(self) -> list[str]:
        """Of the entries, where they stand in the settings."""
        return [f"task.mixture.{number}" for number in range(len(self.mixture))] or ["task"]

    @property
    def weights(self) -> list[float]:
        """Their shares of a step's prompts, with sum 1."""
        weights = [entry.weight for entry in self.mixture] or [1.0]
        return [weight / sum(weights) for weight in weights]


class BenchmarkConfig(DatasetConfig):
    """One entry of evaluation.benchmarks."""

    split: str | None = Field(
        default=None, description="split; null: the data set's own for testing"
    )


class PromptConfig(Section):
    """How a problem becomes the text that the model reads."""

    template: str = Field(
        default="plain",
        description="plain ({problem} {instruction} and a line break: the embedded model's), base "
        "(Question: ... Answer:, for base models), chat (the tokenizer's chat template), or your "
        "own text with {problem} and, if you like, {instruction} in it",
    )
    instruction: str | None = Field(
        default=None, description="what is asked of the answer; null: the template's own words"
    )
    system: str | None = Field(
        default=None,
        description="system message of template chat, for conversations that have none of their "
        "own",
    )
    template_kwargs: dict[str, Any] = Field(
        default={},
        description="variables of the tokenizer's chat template, e.g. {enable_thinking: false}",
    )
    date: Annotated[str, BeforeValidator(_day)] = Field(
        default="2024-07-26",
        description="the day that a chat template is told where it asks for today's, so that the "
        "prompts are the same tomorrow (the default is what Llama 3's writes without a clock)",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
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

    function: Annotated[PathText, AfterValidator(_reward)] = Field(
        description=f"{choices('reward')}, called with lists prompts, completions, references, "
        "verdicts and the data set's columns by keyword; it returns a list of numbers"
    )
    options: dict[str, Any] = Field(
        default={}, description="options of your own function, checked by its annotations"
    )
    weight: Number = Field(default=1.0, description="its weight in the sum that is the reward")
    label: str | None = Field(
        default=None,
        min_length=1,
        description="name in messages, metrics and samples; null: that of the function",
    )

    @property
    def title(self) -> str:
        return self.label or self.function


class RewardConfig(Section):
    """What a response is paid for, and how its answer is compared with the reference."""

    functions: list[RewardFunctionConfig] = Field(
        default=[RewardFunctionConfig(function="rule")],
        min_length=1,
        description="the reward is their weighted sum; accuracy is always the rule's",
    )
    time_limit: Number = Field(
        default=5.0,
        gt=0,
        description="seconds of CPU time for one symbolic comparison; then it counts as wrong",
    )
    step_budget: Number = Field(
        default=60.0,
        gt=0,
        description="seconds for all comparisons of a step on a rank; answers that have no verdict "
        "by then count as wrong (reward/unjudged)",
    )
    workers: StrictInt = Field(
        default=2, ge=1, description="processes of a rank that compare answers by SymPy"
    )

    @model_validator(mode="after")
    def _functions_differ(self) -> RewardConfig:
        names = [entry.label or os.path.normpath(entry.function) for entry in self.functions]
        refuse_doubles("reward.functions", names)
        return self
