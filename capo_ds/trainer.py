"""The training loop: rollout, score, learn, evaluate, tell, save."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from tqdm import tqdm
from transformers import PreTrainedModel

from capo_ds.callbacks import Callback, Callbacks
from capo_ds.capacity import used_memory
from capo_ds.config import Config
from capo_ds.deal import Deal
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.evaluation import as_metrics, write_completions
from capo_ds.facts import run_facts
from capo_ds.interruption import Interruption
from capo_ds.learner import Learner
from capo_ds.learning.batch import Batch, Heard
from capo_ds.learning.passes import with_sample_size
from capo_ds.memory import plan_on_all_ranks
from capo_ds.preparation import prepare
from capo_ds.rehearsal import passes_of, rehearse
from capo_ds.responses import Responses
from capo_ds.rollout.rollout import Rollout
from capo_ds.run_folder import going_on
from capo_ds.run_state import resumed
from capo_ds.scoring import Judged, judge, sample_records, score
from capo_ds.tasks import Problem
from capo_ds.tasks.groups import Groups
from capo_ds.tasks.prompts import encode
from capo_ds.telemetry.card import model_card
from capo_ds.telemetry.divergence import Watch
from capo_ds.telemetry.metrics import (
    Measures,
    PhaseTimer,
    Recorder,
    read_metrics,
)
from capo_ds.telemetry.summary import (
    closing_words,
    progress_line,
    startup_summary,
    tell_hint,
)
from capo_ds.trial_save import rehearse_saving

EVALUATIONS = "evaluations"  # folder of the completions of each evaluation
PROBE_PROBLEMS = 8
FINISHING = "ending after this step, with a checkpoint"


class Trainer:
    """One rank of a run. Every method is called on all ranks together.

    embedded: in a process of another's, which is not to be ended by Ctrl-C.

    Raises:
        PeerError: on all ranks, if the run cannot start or a phase fails on any rank.
    """

    def __init__(self, config: Config, callbacks: Sequence[Callback] = (), embedded: bool = False):
        self.config, self.embedded = config, embedded
        self.folder = Path(config.train.output_dir)
        watch = Watch(self.folder, config.train.stop_on_divergence)
        self.callbacks = Callbacks([watch, *callbacks])
        ready = prepare(config)
        self.lock, self.tokenizer, self.scorer = ready.lock, ready.tokenizer, ready.scorer
        self.train_problems, self.left_out = ready.train_problems, ready.left_out
        self.evaluator, policy = ready.evaluator, ready.policy
        self.deal = Deal(config, ready.train_problems, ready.order)
        self.groups = Groups(ready.train_problems)
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
            passes_of(self.engine),
        )
        rehearse_saving(self.folder, self.engine, self.tokenizer, config)
        self.timer, self.measures = PhaseTimer(), Measures()
        self.memory = plan_on_all_ranks(config, policy)
        store = self.memory.choose(config.gradients.store)
        self.learner = Learner(config, self.engine, store, self.timer)
        self.state = resumed(config, self.engine, self.learner)
        self.responses = Responses(
            config,
            self.engine,
            self.tokenizer,
            self.deal,
            self.timer,
            self.measures,
            prompts=encode(self.tokenizer, self.train_problems[:PROBE_PROBLEMS]),
        )
        self.responses.take_up(self.state.under_way(config))

    # ---------------------------------------------------------------- the loop

    def run(self) -> bool:
        """Train from the first step (or the checkpoint's) to the last, writing all outputs; False
        if the run was interrupted before its end."""
        train = self.config.train
        if self.state.step >= train.steps:
            if not comm.on_main("resume", self._ended):
                self._end()
            elif comm.is_main():
                print(
                    f"{self.folder} is finished: it has made {self.state.step} of train.steps = "
                    f"{train.steps}; raise train.steps or choose another train.output_dir"
                )
            return True
        recorder = self._start_logs()
        if self.state.accuracy["before"] is None and train.eval_every:
            self._record(recorder, 0, self._evaluate(0))
        last_word = partial(going_on, self.folder)
        with Interruption(last_word, FINISHING, self.embedded) as interruption:
            if not self._train(recorder, interruption):
                return False
            self._end()
        return True

    def _train(self, recorder: Recorder | None, interruption: Interruption) -> bool:
        """The steps; False if the run was asked to end before its last."""
        train = self.config.train
        bar = tqdm(
            total=train.steps,
            initial=self.state.step,
            disable=not comm.is_main(),
            unit="step",
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}",
        )
        steps = 0 if self.callbacks.stopping else train.steps
        for step in range(self.state.step, steps):
            done, last = step + 1, step + 1 == train.steps
            metrics = self._step(step, recorder)
            self.state.step = done
            if train.eval_every and (last or done % train.eval_every == 0):
                metrics |= self._evaluate(done)
            self.callbacks.step_end(done, self._record(recorder, done, metrics))
            last = last or self.callbacks.stopping
            bar.set_postfix_str(progress_line(metrics, self.state.accuracy["latest"]))
            bar.update()
            stopping = bool(comm.max_over_ranks(interruption.asked))
            on_time = train.save_every and done % train.save_every == 0
            if last or stopping or on_time or self.state.best_step == done:
                self._save()
            if stopping and not last:
                bar.close()
                if comm.is_main():
                    print(f"interrupted after step {done}; train.resume=auto goes on from there")
                    tell_hint(read_metrics(self.folder))
                return False
            if last:
                break
        bar.close()
        return True

    def _end(self) -> None:
        self.engine.card = self._card()
        self.engine.save_adapter(self.folder / "adapter")
        comm.on_main("the run's summary", self._finish)

    def _finish(self) -> None:
        """Complete the adapter's folder, and print and draw the run's summary."""
        self.tokenizer.save_pretrained(self.folder / "adapter")
        self._end_mark.write_text(str(self.state.step))  # what is written last
        closing_words(self.folder, self.state.accuracy)

    @property
    def _end_mark(self) -> Path:
        return self.folder / "adapter" / ".step"

    def _ended(self) -> bool:
        """Whether the adapter's folder is whole, and of the step that the run is at."""
        mark = self._end_mark
        return mark.exists() and mark.read_text() == str(self.state.step)

    def _step(self, step: int, recorder: Recorder | None) -> dict[str, float]:
        """Sample and judge responses to one step's prompts, and learn from them; the metrics."""
        problems, rollout = self.responses.of(step)
        judged = self._judge(problems, rollout)
        rollout, judged = self.responses.with_signal(step, rollout, judged, self._judge)
        with self.timer("score"):
            scored = score(self.config, self.learner.passes.objective, judged)
        self.measures.add(scored.measures(rollout, self.groups))
        numbers = self.deal.responses()
        with self.timer("log_probs"):
            batch = self.learner.prepare(rollout, scored.advantages, numbers)
        heard = self._learn(batch, step)
        self.responses.synced = False
        every = self.config.train.log_samples_every
        if every and step % every == 0:
            with comm.collective("logging samples"):
                samples = sample_records(scored, rollout, numbers, heard)
            with comm.together("logging"):
                if recorder:
                    recorder.samples(step + 1, samples)
        return with_sample_size(Measures.merge(comm.gather(self.measures.take())))

    def _judge(self, problems: list[Problem], rollout: Rollout) -> Judged:
        with self.timer("score"):
            return judge(self.config, self.tokenizer, self.scorer, problems, rollout)

    def _learn(self, batch: Batch, step: int) -> Heard:
        """The updates of a step; what the first with each response made of it."""
        heard: Heard = {}
        first, sources = step * self.updates_per_step, self.deal.sources(step)
        for number, part in enumerate(self.deal.minibatches(batch, step), start=first):
            update = self.learner.update(part, number, sources)
            for measured in update.measures:
                self.measures.add(measured)
            heard = update.heard | heard
        return heard

    # ---------------------------------------------------------------- outputs

    def _evaluate(self, done: int) -> dict[str, float]:
        """Evaluate after `done` steps; the metrics. Rank 0 writes all completions."""
        with self.responses.current(), self.timer("evaluation"):
            assert self.evaluator is not None  # with train.eval_every
            evaluations = self.evaluator.evaluate(self.responses.sampler)
        path = self.folder / EVALUATIONS / f"step{done:06d}.jsonl"
        comm.on_main("writing completions", lambda: write_completions(evaluations, path))
        self.state.evaluated(done, evaluations[0].accuracy)
        metrics = as_metrics(evaluations)
        self.callbacks.evaluation_end(done, metrics)
        return metrics

    def _start_logs(self) -> Recorder | None:
        """Print what is about to happen and open the logs; a recorder on rank 0, None elsewhere."""
        with comm.together("opening the logs"):
            return self._open_logs() if comm.is_main() else None

    def _open_logs(self) -> Recorder:
        facts = run_facts(
            self.config, self.train_problems, self.left_out, self.evaluator, self.state.step
        )
        summary = startup_summary(
            self.config, self.engine.module, self.memory, self.learner.store_kind, facts
        )
        print(summary, flush=True)
        # A resumed run keeps the line of its last whole step; a fresh one keeps none.
        first_line = self.state.step and self.state.step + 1
        recorder = Recorder(self.folder, self.engine.writers, first_line)
        recorder.settings(self.config.model_dump(mode="json"))
        return recorder

    def _record(
        self, recorder: Recorder | None, step: int, metrics: dict[str, float]
    ) -> dict[str, float]:
        """The line of the log."""
        seconds = self.timer.take()
        name, count = used_memory(comm.device())
        memory = {name: comm.max_over_ranks(count)}
        with comm.together("logging"):
            if recorder:
                recorder.scalars(step, metrics | seconds | memory)
        return metrics | seconds | memory

    def _save(self) -> None:
        under_way = self.responses.under_way()
        with self.timer("checkpoint"):
            self.engine.card = self._card()
            self.state.save(self.config, self.engine, self.learner, under_way)

    def _card(self) -> str:
        base = cast(PreTrainedModel, self.engine.module.get_base_model())
        name, state = base.config.name_or_path or self.config.model.path, self.state
        return model_card(self.config, name, state.step, state.accuracy, state.best_step)
