"""Accuracy on benchmarks, shared out over the ranks: greedy pass@1, or avg@k and pass@k."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from capo_ds.config import Config
from capo_ds.distributed import comm
from capo_ds.rollout.base import (
    Draw,
    Sampler,
    Truncation,
    check_length,
)
from capo_ds.tasks import Judge, Problem, Verdict, load_benchmark, load_data_set, score
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.outcome import Comparison
from capo_ds.tasks.prompts import decode, encode, fitting, render
from capo_ds.terminal import aligned, columns


@dataclass(frozen=True)
class Benchmark:
    """Problems with their prompts as the model reads them; `left_out` had too long ones."""

    title: str
    problems: list[Problem]
    left_out: int


@dataclass(frozen=True)
class Answered:
    """The k responses to one problem, and what became of them."""

    completions: list[str]
    verdicts: list[Verdict]
    lengths: list[int]  # tokens
    truncated: list[bool]  # cut at the limit


@dataclass(frozen=True)
class Evaluation:
    """Responses to all problems of a benchmark, in their order."""

    benchmark: Benchmark
    answered: list[Answered]

    @property
    def accuracy(self) -> float:
        """Share of responses that are right, in the required format: pass@1, avg@k."""
        return statistics.fmean(self._right())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, for problems drawn at random: deviation over problems / sqrt(n)."""
        right = self._right()
        return statistics.stdev(right) / math.sqrt(len(right)) if len(right) > 1 else 0.0

    @property
    def solved(self) -> float:
        """pass@k: share of problems with a right one among their k responses."""
        return statistics.fmean(share > 0 for share in self._right())

    @property
    def formatted(self) -> float:
        """Share of responses in the required format."""
        return self._mean(lambda answered: [v.formatted for v in answered.verdicts])

    @property
    def truncated(self) -> float:
        return self._mean(lambda answered: answered.truncated)

    @property
    def length(self) -> float:
        """Mean length of a response in tokens."""
        return self._mean(lambda answered: answered.lengths)

    def parts(self) -> dict[str, Evaluation]:
        """Of each group of the problems (such as `by_level/3`), if they are of several."""
        benchmark = self.benchmark
        return {
            name: Evaluation(
                replace(benchmark, problems=[benchmark.problems[row] for row in rows]),
                [self.answered[row] for row in rows],
            )
            for name, rows in Groups(benchmark.problems).rows(benchmark.problems).items()
        }

    def count(self, comparison: Comparison) -> int:
        """Boxed answers of which this became."""
        verdicts = (verdict for answered in self.answered for verdict in answered.verdicts)
        return sum(verdict.comparison is comparison for verdict in verdicts)

    def _right(self) -> list[float]:
        """Share of each problem's responses that are right."""
        return [statistics.fmean(v.correct for v in a.verdicts) for a in self.answered]

    def _mean(self, values: Callable[[Answered], Iterable[float]]) -> float:
        return statistics.fmean(value for answered in self.answered for value in values(answered))


class Evaluator:
    """The benchmarks of a config, ready to be answered. No method but `evaluate` is collective."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, judge: Judge):
        """Raises `ConfigError` where a benchmark's data or prompts cannot be used."""
        self.config, self.tokenizer, self.judge = config, tokenizer, judge
        self.limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
        settings = config.evaluation
        if settings.benchmarks:
            loaded = {
                b.title: load_benchmark(b, settings.limit, f"evaluation.benchmarks.{number}")
                for number, b in enumerate(settings.benchmarks)
            }
        else:
            loaded = {
                entry.title: load_data_set(entry, "test", place)[: settings.limit]
                for entry, place in zip(config.task.entries, config.task.places, strict=True)
            }
        self.benchmarks = [self._prepare(title, problems) for title, problems in loaded.items()]

    def _prepare(self, title: str, problems: list[Problem]) -> Benchmark:
        problems = render(problems, self.config.prompt, self.tokenizer)
        kept = fitting(problems, self.tokenizer, self.config.rollout.max_prompt_tokens)
        return Benchmark(title, kept, left_out=len(problems) - len(kept))

    def check_lengths(self, context: int) -> None:
        """Raises `ConfigError` if a prompt leaves no room for the longest response (tokens)."""
        for benchmark in self.benchmarks:
            prompts = encode(self.tokenizer, benchmark.problems)
            longest = max(map(len, prompts))
            check_length(longest, self.limit, context, "evaluation.max_new_tokens")

    def evaluate(self, sampler: Sampler) -> list[Evaluation]:
        """Answer and judge every problem; all ranks take part and get the same result."""
        return [self._answer(sampler, number) for number in range(len(self.benchmarks))]

    def _answer(self, sampler: Sampler, number: int) -> Evaluation:
        benchmark = self.benchmarks[number]
        with comm.phase(f"evaluation on {benchmark.title}", sampler.collective):
            mine = comm.shard(list(enumerate(benchmark.problems)))
            size = max(1, self.config.rollout.batch_size // self.config.evaluation.samples)
            bar = tqdm(
                total=len(mine),
                desc=f"{benchmark.title} on each of {comm.world_size()} ranks",
                unit="problem",
                disable=not comm.is_main(),
                leave=False,
                dynamic_ncols=True,
            )
            answered = []
            # As often on every rank: a tensor-parallel group samples together.
            for start in range(0, -(-len(benchmark.problems) // comm.world_size()), size):
                answered += self._answer_some(sampler, number, mine[start : start + size])
                bar.update(len(answered) - bar.n)
            bar.close()
        return Evaluation(benchmark, comm.unshard(answered))

    def _answer_some(
        self, sampler: Sampler, benchmark: int, problems: list[tuple[int, Problem]]
    ) -> list[Answered]:
        """Responses to some problems, given with their numbers in the benchmark."""
        settings, k = self.config.evaluation, self.config.evaluation.samples
        posed = [problem for _, problem in problems]
        # By the problem's number: the same responses on any number of ranks.
        draws = [Draw(settings.seed, benchmark, number) for number, _ in problems]
        rollout = sampler.sample(
            encode(self.tokenizer, posed),
            draws,
            k,
            settings.temperature,
            self.limit,
            Truncation(settings.top_p, settings.top_k, settings.min_p),
        )
        texts = decode(self.tokenizer, rollout, self.config.prompt.stop)
        verdicts = score(texts, [problem for problem in posed for _ in range(k)], self.judge)
        lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
        groups = [slice(start, start + k) for start in range(0, len(texts), k)]
        return [Answered(texts[own], verdicts[own], lengths[own], truncated[own]) for own in groups]


def as_metrics(evaluations: list[Evaluation]) -> dict[str, float]:
    """Scalars for the logs: the first benchmark's as eval/*, each of several as eval/NAME/*, each
    of their levels as by_level/LEVEL/*, and the lowest of several accuracies as eval/worst."""
    named = {"eval": evaluations[0]}
    if len(evaluations) > 1:
        named |= {f"eval/{e.benchmark.title}": e for e in evaluations}
    for name, evaluation in list(named.items()):
        named |= {f"{name}/{group}": part for group, part in evaluation.parts().items()}
    scalars = {}
    for name, evaluation in named.items():
        scalars[f"{name}/accuracy"] = evaluation.accuracy
        scalars[f"{name}/formatted"] = evaluation.formatted
        if len(evaluation.answered[0].verdicts) > 1:
            scalars[f"{name}/pass_at_k"] = evaluation.solved
    if len(evaluations) > 1:
        scalars["eval/worst"] = min(evaluation.accuracy for evaluation in evaluations)
    return scalars


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """One benchmark's results for JSON and the table; shares are in [0, 1]."""
    return {
        "benchmark": evaluation.benchmark.title,
        "problems": len(evaluation.answered),
        "left_out": evaluation.benchmark.left_out,
        "samples": len(evaluation.answered[0].verdicts),
        "accuracy": evaluation.accuracy,
        "standard_error": evaluation.standard_error,
        "pass_at_k": evaluation.solved,
        "formatted": evaluation.formatted,
        "truncated": evaluation.truncated,
        "length": evaluation.length,
        "unparsed": evaluation.count(Comparison.UNPARSED),
        "timed_out": evaluation.count(Comparison.TIMED_OUT),
    }


def table(evaluations: list[Evaluation]) -> str:
    """One line per benchmark."""
    k = len(evaluations[0].answered[0].verdicts)
    rows = [["benchmark", "problems", "pass@1" if k == 1 else f"avg@{k}", "± s.e."]]
    rows[0] += [f"pass@{k}"] if k > 1 else []
    rows[0] += ["formatted", "cut off", "tokens", "unparsed", "timed out", "left out"]
    for line in map(summarise, evaluations):
        shares = ["accuracy", "standard_error", *(["pass_at_k"] if k > 1 else [])]
        rows.append([line["benchmark"], str(line["problems"])])
        rows[-1] += [f"{line[name]:.2%}" for name in (*shares, "formatted", "truncated")]
        rows[-1].append(f"{line['length']:.0f}")
        rows[-1] += [str(line[name]) for name in ("unparsed", "timed_out", "left_out")]
    return aligned(rows, columns(sys.stdout))


def write_completions(evaluations: list[Evaluation], path: Path) -> None:
    """One line of JSON per response: benchmark, problem, prompt, completion, verdict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for evaluation in evaluations:
            pairs = zip(evaluation.benchmark.problems, evaluation.answered, strict=True)
            for number, (problem, answered) in enumerate(pairs):
                for record in _records(answered):
                    head = {"benchmark": evaluation.benchmark.title, "problem": number}
                    texts = {"prompt": problem.prompt, "answer": problem.answer}
                    file.write(json.dumps(head | texts | record) + "\n")


def _records(answered: Answered) -> Iterable[dict[str, Any]]:
    rows = zip(*vars(answered).values(), strict=True)
    for completion, verdict, length, truncated in rows:
        yield {"completion": completion, "tokens": length, "truncated": truncated} | asdict(verdict)
