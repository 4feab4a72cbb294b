"""The training loop: rollout, score, learn, evaluate, tell, save."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from capo_ds.config import Config
from capo_ds.distributed import checkpoint, comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.evaluation import as_metrics, decode, write_completions
from capo_ds.interruption import Interruption
from capo_ds.learner import SEQUENCE_RATIO_SQUARE, Batch, Learner
from capo_ds.memory import plan_on_all_ranks, used_memory
from capo_ds.objective import step_advantages
from capo_ds.preparation import prepare
from capo_ds.rehearsal import Passes, rehearse, rehearse_saving
from capo_ds.rollout.base import Draw, Rollout, SamplerRun, Truncation
from capo_ds.rollout.choose import make_sampler
from capo_ds.run_folder import check_unchanged, going_on
from capo_ds.seeding import Stream, generator
from capo_ds.tasks import Problem, Verdict
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.outcome import Comparison
from capo_ds.tasks.prompts import encode
from capo_ds.telemetry.card import model_card
from capo_ds.telemetry.metrics import METRICS_FILE, Means, PhaseTimer, Recorder, read_metrics
from capo_ds.telemetry.plots import reward_curve
from capo_ds.telemetry.summary import final_table, signal_hint, startup_summary
from capo_ds.terminal import columns, wrapped

EVALUATIONS = "evaluations"  # folder of the completions of each evaluation
PROBE_PROBLEMS = 8
FINISHING = "ending after this step, with a checkpoint"

# Answers that count as wrong because they could not be compared.
JUDGED = {
    "reward/unparsed": Comparison.UNPARSED,
    "reward/timed_out": Comparison.TIMED_OUT,
    "reward/unjudged": Comparison.UNJUDGED,
}


# Of a response that no update made anything of: it had no gradient.
NOT_HEARD = dict.fromkeys(("norm", "cosine_before", "cosine_after", "xi", "weight"))


@dataclass
class Scored:
    """One rank's responses of a step, as text and judged; groups are neighbours."""

    problems: list[Problem]
    texts: list[str]
    verdicts: list[Verdict]
    rewards: Tensor  # (prompts, G), float64 on the CPU
    parts: dict[str, list[float | None]]  # of the rewards, by function
    advantages: Tensor  # (prompts * G,)


class Trainer:
    """One rank of a run. Every method is called on all ranks together.

    Raises:
        PeerError: on all ranks, if the run cannot start or a phase fails on any rank.
    """

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.train.output_dir)
        ready = prepare(config)
        self.lock, self.tokenizer, self.scorer = ready.lock, ready.tokenizer, ready.scorer
        self.train_problems, self.left_out = ready.train_problems, ready.left_out
        self.evaluator, policy = ready.evaluator, ready.policy
        self.order, self.groups = ready.order, Groups(ready.train_problems)
        self.updates_per_step = config.objective.epochs * config.objective.minibatches
        self.engine = CapoEngine(
            policy,
            config,
            optimizer_steps=config.train.steps * self.updates_per_step,
            monitor_dir=self.folder,
        )
        rehearse(
            config,
            self.engine.module,
            encode(self.tokenizer, self.train_problems[:PROBE_PROBLEMS]),
            Passes(
                self.engine.gathered,
                self.engine.whole,
                self.engine.end_of_pass,
                self.engine.lockstep,
            ),
        )
        rehearse_saving(self.folder, self.engine, self.tokenizer)
        self.timer, self.means = PhaseTimer(), Means()
        self.memory = plan_on_all_ranks(config, policy)
        store = self.memory.choose(config.gradients.store)
        self.learner = Learner(config, self.engine, store, self.means, self.timer)
        self.first_step = 0
        self.accuracy: dict[str, float | None] = {"before": None, "latest": None, "best": None}
        self.best_step = 0  # where that was measured
        state = None
        if config.train.resume == "auto":
            state = checkpoint.load(self.folder, self.engine, partial(check_unchanged, config))
        if state:
            self.first_step, self.accuracy = state["step"], state["accuracy"]
            self.best_step = state["best_step"]
            self.learner.solver.radius.restore(state["radius"])
            if config.gradients.store == "auto":  # whatever is free now: stores may round apart
                self.learner.store = state["store"]
        self.synced = False  # whether the sampler has the weights as they are now
        run = comm.broadcast(uuid.uuid4().hex[:8])
        with comm.together("starting the sampler"):
            self.sampler, self.probe = make_sampler(
                SamplerRun(config, self.engine.module, self.tokenizer, run, comm.is_main()),
                prompts=encode(self.tokenizer, self.train_problems[:PROBE_PROBLEMS]),
            )

    # ---------------------------------------------------------------- the loop

    def run(self) -> None:
        """Train from the first step (or the checkpoint's) to the last, writing all outputs."""
        train = self.config.train
        if self.first_step >= train.steps:
            whole = self.folder / "adapter" / "tokenizer_config.json"  # what is written last
            if not comm.on_main("resume", whole.exists):
                self._end()
            elif comm.is_main():
                print(
                    f"{self.folder} is finished: it has made {self.first_step} of train.steps = "
                    f"{train.steps}; raise train.steps or choose another train.output_dir"
                )
            return
        recorder = self._start_logs()
        if self.accuracy["before"] is None and train.eval_every:
            metrics = self._evaluate(0)
            self.accuracy["before"] = metrics["eval/accuracy"]
            self._record(recorder, 0, metrics)
        with Interruption(partial(going_on, self.folder), FINISHING) as interruption:
            if self._train(recorder, interruption):
                self._end()

    def _train(self, recorder: Recorder | None, interruption: Interruption) -> bool:
        """The steps; False if the run was asked to end before its last."""
        train = self.config.train
        bar = tqdm(
            total=train.steps,
            initial=self.first_step,
            disable=not comm.is_main(),
            unit="step",
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}",
        )
        for step in range(self.first_step, train.steps):
            done, last = step + 1, step + 1 == train.steps
            metrics = self._step(step, recorder)
            if train.eval_every and (last or done % train.eval_every == 0):
                metrics |= self._evaluate(done)
            self._record(recorder, done, metrics)
            bar.set_postfix_str(_progress(metrics, self.accuracy["latest"]))
            bar.update()
            stopping = bool(comm.max_over_ranks(interruption.asked))
            on_time = train.save_every and done % train.save_every == 0
            if last or stopping or on_time or self.best_step == done:
                self._save(done)
            if stopping and not last:
                bar.close()
                if comm.is_main():
                    print(f"terminated after step {done}; train.resume=auto goes on from there")
                    _tell_hint(read_metrics(self.folder))
                return False
        bar.close()
        return True

    def _end(self) -> None:
        self.engine.card = self._card(self.config.train.steps)
        self.engine.save_adapter(self.folder / "adapter")
        comm.on_main("the run's summary", self._finish)

    def _step(self, step: int, recorder: Recorder | None) -> dict[str, float]:
        """Sample and judge responses to one step's prompts, and learn from them; the metrics."""
        with self._current_sampler(), self.timer("rollout"), self._sampling("rollout"):
            problems, rollout = self._sample(step)
        with self.timer("score"):
            scored = self._score(problems, rollout)
        self._count(rollout, scored)
        with self.timer("log_probs"):
            batch = self.learner.prepare(rollout, scored.advantages, self._numbers())
        self.learner.heard = {}
        if len(self.config.task.entries) > 1:
            self.learner.sources = [self.train_problems[row].source for row in self.order(step)]
        first = step * self.updates_per_step
        for number, part in enumerate(self._minibatches(batch, step), start=first):
            self.learner.update(part, number)
        self.synced = False
        every = self.config.train.log_samples_every
        if every and step % every == 0:
            with comm.collective("logging samples"):
                samples = self._samples(rollout, scored)
            with comm.together("logging"):
                if recorder:
                    recorder.samples(step + 1, samples)
        return _with_sample_size(Means.merge(comm.gather(self.means.take())))

    # ---------------------------------------------------------------- one step's data

    @contextmanager
    def _current_sampler(self) -> Iterator[None]:
        """Inside, the sampler is awake and has the current weights, verified by the probe."""
        with self.engine.gathered(), self.sampler.awake():
            if not self.synced:
                with self.timer("sync"), comm.together("weight sync"):
                    self.sampler.sync()
                with self.timer("probe"), self._sampling("probe"):
                    self._verify()
                self.synced = True
            yield

    def _sampling(self, phase: str) -> AbstractContextManager[None]:
        return comm.phase(phase, self.sampler.collective)

    def _verify(self) -> None:
        if self.probe:
            differences = self.probe.check()
            self.means.add("rollout/probe_difference", differences)
            self.means.add_max("rollout/probe_difference_max", differences)

    def _sample(self, step: int) -> tuple[list[Problem], Rollout]:
        """This rank's prompts of the step, and G responses to each."""
        rollout, seed = self.config.rollout, self.config.train.seed
        order = self.order(step)
        numbers = comm.shard(list(range(rollout.prompts_per_step)))
        problems = [self.train_problems[order[number]] for number in numbers]
        responses = self.sampler.sample(
            encode(self.tokenizer, problems),
            [Draw(seed, step, number) for number in numbers],
            rollout.group_size,
            rollout.temperature,
            truncation=Truncation(rollout.top_p, rollout.top_k, rollout.min_p),
        )
        return problems, responses

    def _numbers(self) -> Tensor:
        """(n,) of each response of this rank, its number within the step over all ranks."""
        rollout = self.config.rollout
        prompts = comm.shard(list(range(rollout.prompts_per_step)))
        first = rollout.group_size * torch.tensor(prompts, dtype=torch.long, device=comm.device())
        return (first[:, None] + torch.arange(rollout.group_size, device=comm.device())).flatten()

    def _score(self, problems: list[Problem], rollout: Rollout) -> Scored:
        group = self.config.rollout.group_size
        repeated = [problem for problem in problems for _ in range(group)]
        with comm.together("scoring"):
            texts = decode(self.tokenizer, rollout, self.config.prompt.stop)
            rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
            scores = self.scorer(texts, repeated, [ids[mask].tolist() for ids, mask in rows])
            rewards = torch.tensor(scores.rewards, dtype=torch.float64).view(-1, group)
            rounding = torch.tensor(scores.roundings, dtype=torch.float64).view(-1, group)
        advantages = self._advantages(rewards, rounding)
        return Scored(repeated, texts, scores.verdicts, rewards, scores.parts, advantages)

    def _advantages(self, rewards: Tensor, rounding: Tensor) -> Tensor:
        """(n,) of this rank's responses, from the rewards (prompts, G) of the whole step: baseline
        and scale may be the step's."""
        everyone = comm.unshard(list(zip(rewards, rounding, strict=True)))
        with comm.together("advantages"):
            rewards, rounding = map(torch.stack, zip(*everyone, strict=True))
            settings = self.config.objective
            values = step_advantages(self.learner.objective, settings, rewards, rounding)
            mine = values[comm.rank() :: comm.world_size()]
            return mine.flatten().float().to(comm.device())

    def _count(self, rollout: Rollout, scored: Scored) -> None:
        """Add the metrics of a step's responses."""
        add, rewards = self.means.add, scored.rewards
        correct = torch.tensor([verdict.correct for verdict in scored.verdicts]).double()
        formatted = torch.tensor([verdict.formatted for verdict in scored.verdicts]).double()
        right = correct.view(rewards.shape).mean(1)
        measures = {  # of each prompt or (P, G) of each response
            "mean": rewards,
            "group_std": rewards.std(1),
            "accuracy": correct.view(rewards.shape),
            "formatted": formatted.view(rewards.shape),
            "groups_all_right": right == 1,
            "groups_all_wrong": right == 0,
            "zero_advantage": scored.advantages.view(rewards.shape) == 0,
        }
        prompts = scored.problems[:: self.config.rollout.group_size]
        for name, values in measures.items():
            add(f"reward/{name}", values)
            for group, rows in self.groups.rows(prompts).items():
                add(f"reward/{group}/{name}", values[rows])
        for name, outcome in JUDGED.items():
            add(name, torch.tensor([v.comparison is outcome for v in scored.verdicts]))
        if len(scored.parts) > 1:
            for name, given in scored.parts.items():
                known = [reward for reward in given if reward is not None]
                add(f"reward/functions/{Path(name).name}", torch.tensor(known))
        add("rollout/length", rollout.lengths)
        add("rollout/truncated", rollout.truncated)
        add("rollout/entropy", rollout.entropy[rollout.completion_mask])

    def _minibatches(self, batch: Batch, step: int) -> Iterator[Batch]:
        """This rank's part of each mini-batch of prompts, epoch by epoch.

        Prompts are dealt out by their numbers over all ranks, so that the mini-batches do not
        depend on the number of ranks.
        """
        objective, group = self.config.objective, self.config.rollout.group_size
        for epoch in range(objective.epochs):
            random = generator(self.config.train.seed, Stream.MINIBATCH_ORDER, step, epoch)
            order = random.permutation(self.config.rollout.prompts_per_step)
            for numbers in np.array_split(order, objective.minibatches):
                local = numbers[numbers % comm.world_size() == comm.rank()] // comm.world_size()
                rows = np.sort(local)[:, None] * group + np.arange(group)
                yield batch.take(torch.as_tensor(rows.flatten()))

    def _samples(self, rollout: Rollout, scored: Scored) -> list[dict[str, Any]]:
        """All responses of the step on all ranks, in order of their numbers, for the logs."""
        heard = self.learner.heard
        group = self.config.rollout.group_size
        numbers, lengths = self._numbers().tolist(), rollout.lengths.tolist()
        rewards, advantages = scored.rewards.flatten().tolist(), scored.advantages.tolist()
        truncated = rollout.truncated.tolist()
        mine = [
            {
                "prompt_number": number // group,
                "source": problem.source,
                "prompt": problem.prompt,
                "completion": scored.texts[row],
                "answer": problem.answer,
                "verdict": scored.verdicts[row].word,
                "length": lengths[row],
                "truncated": truncated[row],
                "reward": rewards[row],
                "rewards": {name: given[row] for name, given in scored.parts.items()},
                "advantage": advantages[row],
                **heard.get(number, NOT_HEARD),
            }
            for row, (number, problem) in enumerate(zip(numbers, scored.problems, strict=True))
        ]
        shares = comm.gather(list(zip(numbers, mine, strict=True)))
        return [sample for _, sample in sorted(chain(*shares), key=itemgetter(0))]

    # ---------------------------------------------------------------- outputs

    def _evaluate(self, done: int) -> dict[str, float]:
        """Evaluate after `done` steps; the metrics. Rank 0 writes all completions."""
        with self._current_sampler(), self.timer("evaluation"):
            evaluations = self.evaluator.evaluate(self.sampler)
        path = self.folder / EVALUATIONS / f"step{done:06d}.jsonl"
        comm.on_main("writing completions", lambda: write_completions(evaluations, path))
        self.accuracy["latest"] = evaluations[0].accuracy
        if done and evaluations[0].accuracy > (self.accuracy["best"] or 0.0):
            self.accuracy["best"], self.best_step = evaluations[0].accuracy, done
        return as_metrics(evaluations)

    def _start_logs(self) -> Recorder | None:
        """Print what is about to happen and open the logs; a recorder on rank 0, None elsewhere."""
        with comm.together("opening the logs"):
            return self._open_logs() if comm.is_main() else None

    def _open_logs(self) -> Recorder:
        facts = {
            "ranks": comm.world_size(),
            "device": f"{comm.device()}, {torch.get_num_threads()} threads a rank",
            "deepspeed": self.config.deepspeed,
            "task": self._task_row(),
            "evaluation": self._evaluation_row(),
            "prompt": self.train_problems[0].prompt,
            "reward": " + ".join(
                f"{entry.weight:g} * {entry.function}" for entry in self.config.reward.functions
            ),
            "steps": f"{self.first_step + 1} to {self.config.train.steps}, seed "
            f"{self.config.train.seed}, {self.config.train.micro_batch_size} sequences a "
            "micro-batch",
        }
        if self.first_step:
            place = checkpoint.CHECKPOINTS + "/" + checkpoint_name(self.first_step)
            facts["goes on"] = f"after step {self.first_step}, from {self.folder / place}"
        summary = startup_summary(
            self.config, self.engine.module, self.memory, self.learner.store, facts
        )
        print(summary, flush=True)
        # A resumed run keeps the line of its last whole step; a fresh one keeps none.
        first_line = self.first_step and self.first_step + 1
        recorder = Recorder(self.folder, self.engine.writers, first_line)
        recorder.settings(self.config.model_dump(mode="json"))
        return recorder

    def _task_row(self) -> str:
        sources = Counter(problem.source for problem in self.train_problems)
        task = self.config.task
        shares = [f"{share:.0%} of the prompts from " for share in task.weights]
        return ", ".join(
            f"{share if task.mixture else ''}{title}: {sources[title]} training problems"
            for share, title in zip(shares, sources, strict=True)
        ) + (f" ({self.left_out} left out, too long)" if self.left_out else "")

    def _evaluation_row(self) -> str:
        if self.evaluator is None:
            return "never"
        return ", ".join(
            f"{benchmark.title}: {len(benchmark.problems)} problems"
            + (f" ({benchmark.left_out} left out, too long)" if benchmark.left_out else "")
            for benchmark in self.evaluator.benchmarks
        )

    def _record(self, recorder: Recorder | None, step: int, metrics: dict[str, float]) -> None:
        seconds = self.timer.take()
        name, count = used_memory(comm.device())
        memory = {name: comm.max_over_ranks(count)}
        with comm.together("logging"):
            if recorder:
                recorder.scalars(step, metrics | seconds | memory)

    def _save(self, done: int) -> None:
        """A checkpoint after `done` steps; all else that a run needs follows from that number."""
        with self.timer("checkpoint"):
            state = {
                "step": done,
                "accuracy": self.accuracy,
                "best_step": self.best_step,
                "store": self.learner.store,
                "radius": self.learner.solver.radius.state(),
                "config": self.config.model_dump(mode="json"),
            }
            self.engine.card = self._card(done)
            checkpoint.save(self.folder, checkpoint_name(done), self.engine, state)
            keep, best = self.config.train.keep_checkpoints, checkpoint_name(self.best_step)
            comm.on_main(
                "removing old checkpoints", lambda: checkpoint.rotate(self.folder, keep, {best})
            )

    def _card(self, done: int) -> str:
        base = self.engine.module.get_base_model().config._name_or_path
        return model_card(self.config, base, done, self.accuracy, self.best_step)

    def _finish(self) -> None:
        """Print and draw the run's summary, and complete the adapter's folder."""
        self.tokenizer.save_pretrained(self.folder / "adapter")
        seconds: dict[str, float] = {}
        metrics = read_metrics(self.folder)
        for line in metrics:
            for name, value in line.items():
                if name.startswith("time/"):
                    seconds[name] = seconds.get(name, 0.0) + value
        print(final_table(self.accuracy["before"], self.accuracy["latest"], seconds))
        print(f"adapter      {self.folder / 'adapter'}")
        print(f"metrics      {self.folder / METRICS_FILE} and TensorBoard beside it")
        print(f"reward curve {reward_curve(self.folder)}", flush=True)
        _tell_hint(metrics)


def _tell_hint(metrics: list[dict[str, float]]) -> None:
    if hint := signal_hint(metrics):
        print(wrapped(hint, columns(sys.stdout)), flush=True)


def checkpoint_name(step: int) -> str:
    return f"step{step:06d}"


def _with_sample_size(metrics: dict[str, float]) -> dict[str, float]:
    """Kish's effective sample size, as a share of the responses, in place of the mean square."""
    if SEQUENCE_RATIO_SQUARE in metrics:
        square = metrics.pop(SEQUENCE_RATIO_SQUARE)
        metrics["rollout/effective_sample_size"] = metrics["rollout/sequence_ratio"] ** 2 / square
    return metrics


def _progress(metrics: dict[str, float], accuracy: float | None) -> str:
    """Of the progress bar: reward, accuracies, and the share of samples in conflict with g_0."""
    parts = [f"reward {metrics['reward/mean']:+.2f}", f"train {metrics['reward/accuracy']:.0%}"]
    if accuracy is not None:
        parts.append(f"test {accuracy:.0%}")
    if "conflict/all_before" in metrics:
        parts.append(f"conflict {metrics['conflict/all_before']:.0%}")
    if "conflict/heldout_all_after" in metrics:
        parts.append(f"unseen {metrics['conflict/heldout_all_after']:.0%}")
    return ", ".join(parts)
