"""Sampling in a process of its own beside each rank, with the Hugging Face model."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import torch
from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.rollout import hf
from capo_ds.rollout.base import (
    WHOLE,
    Asked,
    Draw,
    EarlySampler,
    Sampled,
    SamplerBytes,
    SamplerRun,
    SamplingShapes,
    Truncation,
    check_prompts,
    model_context,
)
from capo_ds.rollout.child import Answer, Request, Start, Weights, digest_of, factors_of
from capo_ds.rollout.rollout import Rollout

PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds capo_ds
MAIN = "from capo_ds.rollout.child import main; main()"


def process(run: SamplerRun) -> ProcessSampler | None:
    """The sampler of a run; None in a dry run, which starts no process."""
    return None if run.dry else ProcessSampler(run.policy, run.ends, run.pad, run.config)


def memory(shapes: SamplingShapes) -> SamplerBytes:
    """Its own weights, and what sampling takes, while the trainer works too."""
    sampling = hf.memory(shapes).sampling
    return SamplerBytes(0, shapes.weights + sampling, "rollout.batch_size")


class ProcessSampler(EarlySampler):
    """A `Sampler` on a process that has the policy once more, as `sampler: hf` would sample.

    Weights and requests reach it in the order in which they were sent, and each answer names the
    weights that it was sampled with: others than were sent before it are an error.

    ends: the tokens that end a response.
    Raises:
        ConfigError: it cannot load the model.
        TimeoutError, RuntimeError: from what waits for it, after `rollout.timeout`, on its error
            or its end.
    """

    collective = False
    shares_policy = False
    names_weights = True

    def __init__(self, policy: PeftModel, ends: Sequence[int], pad: int, config: Config):
        self.policy, self.context = policy, model_context(policy)
        self.max_new_tokens, self.timeout = config.rollout.max_new_tokens, config.rollout.timeout
        self._digest = ""  # of the weights that were sent last
        self._child = Child()
        weakref.finalize(self, self._child.end)
        device = next(policy.parameters()).device
        start = Start(config, ends, pad, device, torch.get_num_threads())
        self._wait(self._child.ask(start), "starting")

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sync(self) -> None:
        factors = {name: factor.cpu() for name, factor in factors_of(self.policy).items()}
        self._digest = digest_of(factors)
        self._child.tell(Weights(factors))

    def ask(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Asked:
        check_prompts(prompts, max_new_tokens or self.max_new_tokens, self.context)
        arguments = {
            "prompts": prompts,
            "draws": draws,
            "samples": samples,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "truncation": truncation,
        }
        digest, answer = self._digest, self._child.ask(Request(arguments))
        return lambda: self._sampled(answer, digest)

    def _sampled(self, asked: Future[Answer], digest: str) -> Sampled:
        answer = self._wait(asked, "sampling")
        if digest not in ("", answer.digest):
            raise RuntimeError(
                f"the sampler's process has sampled with weights {answer.digest}, not {digest}"
            )
        assert answer.rollout is not None  # as of every request
        device = next(self.policy.parameters()).device
        tensors = {name: value.to(device) for name, value in answer.rollout.items()}
        return Sampled(Rollout(**tensors), answer.seconds)

    def _wait(self, asked: Future[Answer], what: str) -> Answer:
        try:
            answer = asked.result(self.timeout)
        except TimeoutError as error:
            raise TimeoutError(
                f"{what}: the sampler's process (number {self._child.number}) has not answered "
                f"within rollout.timeout = {self.timeout:g} s"
            ) from error
        if answer.error is None:
            return answer
        kind, text = answer.error
        if kind == ConfigError.__name__:
            raise ConfigError(text)
        raise RuntimeError(f"{what}: in the sampler's process: {kind}: {text}")


class Child:
    """A process of `capo_ds.rollout.child`, and what it still owes."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # signals of the terminal are not for it
        )
        theirs.close()  # so that its end is the end of the pipe
        self._owed: deque[Future[Answer]] = deque()
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        # Neither side waits for the other: while the process samples, a megabyte of weights takes
        # some 20 ms to be taken in.
        listening = self._connection, self._owed, self._process
        speaking = self._connection, self._messages, self._owed
        for work, given in ((_listen, listening), (_speak, speaking)):
            Thread(target=work, args=given, name="sampler", daemon=True).start()

    @property
    def number(self) -> int:
        """Of the process."""
        return self._process.pid

    def tell(self, message: Start | Weights | Request) -> None:
        """In order, as it is now. That the process is gone, what waits for its answers tells."""
        self._messages.put(pickle.dumps(message))

    def ask(self, message: Start | Request) -> Future[Answer]:
        answer: Future[Answer] = Future()
        self._owed.append(answer)
        self.tell(message)
        if self._process.poll() is not None:
            _fail(self._owed, self._process)
        return answer

    def end(self) -> None:
        """At once: it holds nothing that is needed."""
        self._messages.put(None)
        self._process.kill()
        self._process.wait()


def _speak(
    connection: Connection, messages: SimpleQueue[bytes | None], owed: deque[Future[Answer]]
) -> None:
    try:
        while message := messages.get():
            connection.send_bytes(message)
    except (BrokenPipeError, ConnectionResetError):
        return  # the process is gone, as `_listen` tells
    except OSError as error:
        _give_up(owed, error)


def _listen(connection: Connection, owed: deque[Future[Answer]], process: subprocess.Popen) -> None:
    while True:
        try:
            answer = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process.wait()
            return _fail(owed, process)
        owed.popleft().set_result(answer)


def _fail(owed: deque[Future[Answer]], process: subprocess.Popen) -> None:
    """Tell whoever waits that the process has ended."""
    status = process.returncode
    how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    hint = "; the memory may not have sufficed" if status == -signal.SIGKILL else ""
    _give_up(
        owed, RuntimeError(f"the sampler's process (number {process.pid}) was ended {how}{hint}")
    )


def _give_up(owed: deque[Future[Answer]], error: Exception) -> None:
    with suppress(IndexError):
        while True:
            owed.popleft().set_exception(error)
