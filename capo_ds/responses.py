"""What a run asks of its sampler: the policy's weights in step, and responses, some steps early.

With `rollout.ahead` k, the responses of step s are sampled by the weights after s - k steps (or the
first) and by no others, however fast anything is: at step t the sampler gets W_t, then the prompts
of step t + k, and only then are the responses of step t waited for. So a run can be repeated; and
since a checkpoint holds the responses that were under way, it can be gone on with.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from capo_ds.config import Config
from capo_ds.deal import Deal
from capo_ds.distributed import comm
from capo_ds.distributed.engine import CapoEngine
from capo_ds.dynamic_sampling import Judging, with_signal
from capo_ds.rollout.base import Asked, Draw, Sampled, SamplerRun, Truncation, asked_of, pad_token
from capo_ds.rollout.choose import check_sampler, make_sampler
from capo_ds.rollout.rollout import Rollout, concatenate
from capo_ds.scoring import Judged
from capo_ds.tasks import Problem
from capo_ds.tasks.prompts import encode
from capo_ds.telemetry.metrics import Largest, Measures, PhaseTimer

SECONDS = "seconds"


class Responses:
    """The run's sampler, and what it has been asked for. All methods are called on all ranks.

    timer, measures: where times and metrics are added up. prompts: some of the task's, for the
    probe.
    Raises:
        ConfigError, PeerError: on all ranks, if the sampler cannot start.
    """

    def __init__(
        self,
        config: Config,
        engine: CapoEngine,
        tokenizer: PreTrainedTokenizerBase,
        deal: Deal,
        timer: PhaseTimer,
        measures: Measures,
        prompts: list[list[int]],
    ):
        self.config, self.engine, self.tokenizer, self.deal = config, engine, tokenizer, deal
        self.timer, self.measures = timer, measures
        # Whether the sampler has the weights as they are now; for whoever changes them to deny.
        self.synced = False
        run = comm.broadcast(uuid.uuid4().hex[:8])
        sampling = SamplerRun(config, engine.module, tokenizer, run, loads=comm.is_main())
        # vLLM's ranks make groups while they start, and would wait there for one that has failed:
        # what its settings forbid is told first.
        collective = config.rollout.sampler == "vllm"
        if collective:
            with comm.together("starting the sampler"):
                check_sampler(replace(sampling, dry=True))
        with comm.phase("starting the sampler", collective):
            largest = comm.max_over_ranks if engine.lockstep else None
            self.sampler, self.probe = make_sampler(sampling, prompts, largest)
        self._shared = getattr(self.sampler, "shares_policy", False)
        self._names_weights = getattr(self.sampler, "names_weights", False)
        self._probed = False  # since the run's start, or its resuming
        self._asked: dict[int, Asked] = {}  # by step; those that are still to be learned from
        self._waited: dict[int, float] = defaultdict(float)  # seconds, by step

    @contextmanager
    def current(self, step: int | None = None) -> Iterator[None]:
        """Inside, the sampler is awake and has the current weights, verified by the probe.

        step: about to be learned from. What is due is asked for before anything is waited for.
        """
        # A sampler with weights of its own is sent the LoRA factors; only one that samples with the
        # policy itself has to have it whole.
        with self.engine.gathered() if self._shared else nullcontext(), self.sampler.awake():
            probing = None
            if not self.synced:
                factors = [] if self._shared else self.engine.parameters
                with self.timer("sync"), self.engine.whole(factors), comm.together("weight sync"):
                    self.sampler.sync()
                with self._sampling("probe"):
                    probing = self._probe()
                self.synced = True
            if step is not None:
                with self.timer("rollout"), self._sampling("rollout"):
                    self._ask(step)
                    if self.config.rollout.ahead:  # they come before the probe's
                        self._wait(step)
            if probing:
                self._compare(probing)
            yield

    def _probe(self) -> Callable[[], dict[str, Rollout]] | None:
        """The probe asked for, where one is due; what is returned waits."""
        if not self.probe or (self._names_weights and self._probed):
            return None
        self._probed = True
        return self.probe.ask()

    def _compare(self, answers: Callable[[], dict[str, Rollout]]) -> None:
        assert self.probe is not None  # which has been asked
        with self.timer("probe"), self._sampling("probe"):
            answered = answers()
        with self.timer("probe"), comm.phase("probe", self.engine.lockstep):
            differences = self.probe.compare(answered)
        if not self._names_weights:  # then every line of the log has them
            self.measures.add(
                {
                    "rollout/probe_difference": differences,
                    "rollout/probe_difference_max": Largest(differences),
                }
            )

    def of(self, step: int) -> tuple[list[Problem], Rollout]:
        """This rank's prompts of the step, and G responses to each."""
        with self.current(step), self.timer("rollout"), self._sampling("rollout"):
            rollout, seconds = self._wait(step)
            rollout = rollout.take(range(len(rollout)))  # no wider than it needs
        waited = self._waited.pop(step)
        del self._asked[step]
        if self.config.rollout.ahead:
            self.measures.add(
                {
                    "rollout/staleness": min(self.config.rollout.ahead, step),
                    "rollout/seconds": seconds,
                    "rollout/seconds_hidden": max(0.0, 1 - waited / seconds) if seconds else 1.0,
                }
            )
        return self.deal.prompts(step), rollout

    def with_signal(
        self, step: int, rollout: Rollout, judged: Judged, judge: Judging
    ) -> tuple[Rollout, Judged]:
        """The step's responses, groups without signal replaced as far as the settings go."""
        limit = self.config.rollout.dynamic_sampling
        if not limit:
            return rollout, judged
        others = partial(self._others, step)
        pad = pad_token(self.tokenizer)
        rollout, judged, replaced = with_signal(rollout, judged, others, judge, limit, pad)
        self.measures.add({"rollout/groups_replaced": torch.tensor(replaced)})
        return rollout, judged

    def _others(self, step: int, attempt: int, groups: list[int]) -> tuple[list[Problem], Rollout]:
        """Responses by the weights that have sampled the step's others."""
        problems, draws = self.deal.replacements(step, attempt, groups)
        with self.current(), self.timer("rollout"), self._sampling("rollout"):
            return problems, self._ask_for(problems, draws)().rollout

    def _ask(self, step: int) -> None:
        """For the responses up to those of step + k, with the weights as they are now."""
        for coming in range(step, self._horizon(step + self.config.rollout.ahead) + 1):
            if coming not in self._asked:
                self._asked[coming] = self._ask_for(
                    self.deal.prompts(coming), self.deal.draws(coming)
                )

    def _horizon(self, step: int) -> int:
        """Beyond the last step too, for a run may be made longer; not where it cannot."""
        free = self.config.optimizer.schedule == "constant"
        return step if free else min(step, self.config.train.steps - 1)

    def _ask_for(self, problems: list[Problem], draws: list[Draw]) -> Asked:
        rollout = self.config.rollout
        return asked_of(
            self.sampler,
            encode(self.tokenizer, problems),
            draws,
            rollout.group_size,
            rollout.temperature,
            truncation=Truncation(rollout.top_p, rollout.top_k, rollout.min_p),
        )

    def _wait(self, step: int) -> Sampled:
        began = time.perf_counter()
        sampled = self._asked[step]()
        self._asked[step] = _answered(sampled)
        self._waited[step] += time.perf_counter() - began
        return sampled

    def _sampling(self, phase: str) -> AbstractContextManager[None]:
        return comm.phase(phase, self.sampler.collective)

    # ---------------------------------------------------------------- checkpoints

    def under_way(self) -> dict[str, Tensor]:
        """What was asked for and not yet learned from, once it has come: `step/field` to values of
        all ranks, in the order of the prompts, on the CPU."""
        found = {}
        for step in sorted(self._asked):
            with self.timer("rollout"), self._sampling("rollout"):
                rollout, seconds = self._wait(step)
                group = self.config.rollout.group_size
                starts = range(0, len(rollout), group)
                mine = [_on_cpu(rollout.take(range(start, start + group))) for start in starts]
            whole = concatenate(comm.unshard(mine), pad_token(self.tokenizer))
            found |= {f"{step}/{name}": value for name, value in vars(whole).items()}
            found[f"{step}/{SECONDS}"] = torch.tensor(max(comm.gather(seconds)))
        return found

    def take_up(self, found: dict[str, Tensor]) -> None:
        """What a checkpoint held."""
        rows = self.deal.responses()
        for step in sorted({int(name.partition("/")[0]) for name in found}):
            names = [item.name for item in fields(Rollout)]
            whole = Rollout(**{name: found[f"{step}/{name}"].to(comm.device()) for name in names})
            sampled = Sampled(whole.take(rows), float(found[f"{step}/{SECONDS}"]))
            self._asked[step] = _answered(sampled)


def _answered(sampled: Sampled) -> Asked:
    return lambda: sampled


def _on_cpu(rollout: Rollout) -> Rollout:
    return Rollout(**{name: value.cpu() for name, value in vars(rollout).items()})
