"""Every sampler against `generate` and the trainer's own log-probabilities; then what is special
to each. vLLM's tests share one engine: a process cannot have two, one after the other."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.config import ConfigError, parse_config
from capo_ds.models import load_policy, load_tokenizer, token_log_probs
from capo_ds.rollout import colocated
from capo_ds.rollout.adapter import adapter_settings, adapter_tensors
from capo_ds.rollout.base import Draw, Truncation, end_tokens, request_seed
from capo_ds.rollout.colocated import ColocatedSampler
from capo_ds.rollout.drawing import BLOCK, drawn, truncate
from capo_ds.rollout.engine import PROBE_LENGTHS, max_rank
from capo_ds.rollout.hf import HuggingFaceSampler
from capo_ds.rollout.probe import Probe, SamplerMismatch
from capo_ds.rollout.process import ProcessSampler
from capo_ds.rollout.rollout import Rollout
from capo_ds.rollout.waiting import EngineThread
from tests.conftest import greedy
from tests.ranks import samplers_forked

ENDS, PAD, LIMIT, CONTEXT, VOCABULARY = (2, 7), 0, 14, 192, 40
PROMPTS = [[5, 6, 3], [8], [9, 10, 11, 12, 13, 14], [15, 16], [5, 9, 8, 30, 31]]
SAMPLERS = [
    "hf",
    "process",
    pytest.param("vllm", marks=pytest.mark.vllm),
]
pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM on CPU takes heads of 32
        num_key_value_heads=1,
        initializer_range=0.25,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    for end in ENDS:
        model.lm_head.weight.data[end] *= 1.5  # so that some responses end early
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def config(folder):
    return parse_config(
        {
            "model": {"path": folder, "lora_rank": 4, "lora_alpha": 8},
            "rollout": {"max_new_tokens": LIMIT, "vllm_cache_gib": 0.1, "timeout": 120},
        }
    )


@pytest.fixture(scope="module")
def trained(config):
    """The policy, and its LoRA factors after some training."""
    policy = load_policy(config.model, seed=0).eval()
    move(policy, 0.2, seed=1)
    return policy, [parameter.detach().clone() for parameter in trainable(policy)]


@pytest.fixture
def policy(trained):
    policy, factors = trained
    for parameter, factor in zip(trainable(policy), factors, strict=True):
        parameter.data.copy_(factor)
    return policy


@pytest.fixture(scope="module")
def engine(trained, config) -> ColocatedSampler:
    return ColocatedSampler(trained[0], ENDS, PAD, CONTEXT, config, "test")


@pytest.fixture(scope="module")
def beside(trained, config) -> ProcessSampler:
    with samplers_forked():
        return ProcessSampler(trained[0], ENDS, PAD, config)


@pytest.fixture(params=SAMPLERS)
def sampler(request, policy):
    """Each sampler, with the policy's weights."""
    if request.param == "hf":
        return HuggingFaceSampler(policy, ENDS, PAD, LIMIT, batch_size=64)
    engine = request.getfixturevalue({"process": "beside", "vllm": "engine"}[request.param])
    engine.sync()
    return engine


@pytest.fixture
def vllm(policy, engine) -> ColocatedSampler:
    engine.sync()
    return engine


def trainable(policy) -> list[torch.nn.Parameter]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def move(policy, scale: float, seed: int) -> None:
    """A training step, as it were."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(policy):
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def draws(count: int = len(PROMPTS)) -> list[Draw]:
    return [Draw(0, 3, number) for number in range(count)]


def tokens(rollout: Rollout) -> list[list[int]]:
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def trainers_log_probs(policy, rollout: Rollout, temperature: float) -> torch.Tensor:
    arguments = rollout.input_ids(), rollout.attention_mask(), rollout.completion_mask
    with torch.no_grad():
        return token_log_probs(policy, *arguments, temperature)


# ---------------------------------------------------------------- all samplers


def test_greedy_is_generates(sampler, policy):
    expected = []
    for prompt in PROMPTS:
        output = policy.generate(
            input_ids=torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=LIMIT,
            eos_token_id=list(ENDS),
            pad_token_id=PAD,
        )
        expected.append(output[0, len(prompt) :].tolist())
    assert tokens(greedy(sampler, PROMPTS)) == expected


def test_log_probs_entropy_and_flags(sampler, policy):
    rollout = sampler.sample(PROMPTS, draws(), samples=8, temperature=1.3)
    rows = zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
    prompts = [ids[mask].tolist() for ids, mask in rows]
    assert prompts == [prompt for prompt in PROMPTS for _ in range(8)]
    ends = [set(completion) & set(ENDS) for completion in tokens(rollout)]
    assert {2} in ends and {7} in ends and set() in ends  # both end tokens, and the limit
    assert rollout.truncated.tolist() == [not found for found in ends]
    for completion, found in zip(tokens(rollout), ends, strict=True):
        assert len(completion) == LIMIT or completion[-1] in found
        assert not set(completion[:-1]) & set(ENDS)
    expected = trainers_log_probs(policy, rollout, temperature=1.3)
    torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)
    entropy = rollout.entropy[rollout.completion_mask]
    assert entropy.min() >= 0 and entropy.mean() < np.log(VOCABULARY)


def test_samples_depend_on_their_draw_alone(sampler):
    expected = tokens(sampler.sample(PROMPTS, draws(), 8, 1.0))
    assert len({tuple(completion) for completion in expected[:8]}) > 4
    assert tokens(sampler.sample(PROMPTS, draws(), 8, 1.0)) == expected
    alone = sampler.sample(PROMPTS[3:4], draws()[3:4], 8, 1.0)
    assert tokens(alone) == expected[24:32]
    elsewhere = sampler.sample(PROMPTS[3:4], draws()[2:3], 8, 1.0)
    assert tokens(elsewhere) != expected[24:32]


def test_first_tokens_follow_the_distribution(sampler, policy):
    count = 4000
    rollout = sampler.sample(PROMPTS[:1], draws(1), count, temperature=0.7, max_new_tokens=1)
    assert rollout.completion_ids.shape == (count, 1)
    counts = torch.bincount(rollout.completion_ids[:, 0], minlength=VOCABULARY)
    with torch.no_grad():
        logits = policy(torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits / 0.7, 0) * count
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 2 * likely.sum() + 20


@pytest.mark.parametrize(
    "truncation", [Truncation(top_p=0.6), Truncation(top_k=3), Truncation(0.9, 8, 0.1)]
)
def test_truncated_first_tokens_and_their_log_probs(sampler, policy, truncation):
    rollout = sampler.sample(PROMPTS[:1], draws(1), 500, 0.7, 1, truncation)
    with torch.no_grad():
        logits = policy(torch.tensor(PROMPTS[:1])).logits[:, -1]
    expected = truncate((logits / 0.7).log_softmax(-1), truncation)[0]
    tokens = rollout.completion_ids[:, 0]
    assert set(tokens.tolist()) <= set(expected.isfinite().nonzero().flatten().tolist())
    torch.testing.assert_close(rollout.log_probs[:, 0], expected[tokens], rtol=1e-4, atol=1e-4)


def test_no_prompts(sampler):
    for rollout in (sampler.sample([], [], 4, 1.0), greedy(sampler, [])):
        assert len(rollout) == 0
        assert rollout.completion_ids.shape[0] == rollout.log_probs.shape[0] == 0


def test_an_empty_prompt_is_refused(sampler):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sampler.sample([[5], []], draws(2), 2, 1.0)


def test_prompts_up_to_the_context_and_no_longer(sampler, policy):
    longest = [[5, 6, 8, 9] * CONTEXT][0][: CONTEXT - LIMIT]
    rollout = sampler.sample([longest], draws(1), 2, 1.0)
    expected = trainers_log_probs(policy, rollout, 1.0)
    torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"rollout\.max_new_tokens: 14 .* 179 .* 192"):
        sampler.sample([[*longest, 5]], draws(1), 2, 1.0)


def test_sync_takes_the_new_weights_and_leaves_the_policy_alone(sampler, policy):
    before = tokens(greedy(sampler, PROMPTS))
    move(policy, 0.2, seed=2)
    factors = [parameter.clone() for parameter in trainable(policy)]
    with sampler.awake():
        sampler.sync()
        rollout = greedy(sampler, PROMPTS)
    assert tokens(rollout) != before
    expected = trainers_log_probs(policy, rollout, 1.0)
    torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, factors, trainable(policy)))


# ---------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("batch_size", [8, 17])
def test_samples_do_not_depend_on_the_batches(policy, batch_size):
    whole, parts = (
        HuggingFaceSampler(policy, ENDS, PAD, LIMIT, size).sample(PROMPTS, draws(), 8, 1.0)
        for size in (64, batch_size)
    )
    assert tokens(parts) == tokens(whole)


def test_take_trims_padding(policy):
    sampler = HuggingFaceSampler(policy, ENDS, PAD, LIMIT, batch_size=64)
    rollout = sampler.sample(PROMPTS, draws(), 8, 1.0)
    shortest = int(rollout.lengths.argmin())
    part = rollout.take([shortest])
    assert part.completion_ids.shape == (1, int(rollout.lengths[shortest]))
    assert part.prompt_ids.shape == (1, len(PROMPTS[shortest // 8]))
    assert len(rollout.take([])) == 0


def test_end_tokens_are_the_tokenizers_and_the_generation_configs():
    tokenizer = load_tokenizer("builtin:tiny")

    def ends(configured) -> tuple[int, ...]:
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
        return end_tokens(model, tokenizer)

    own = tokenizer.eos_token_id
    assert ends(None) == ends(own) == (own,)
    assert ends([own, 9]) == (own, 9)


# ---------------------------------------------------------------- vLLM


def probe(vllm, policy, config) -> Probe:
    return Probe(vllm, policy, PROMPTS, CONTEXT, config)


@pytest.mark.vllm
class TestColocated:
    def test_the_probe_passes_after_every_sync(self, vllm, policy, config):
        check = probe(vllm, policy, config)
        assert max(map(len, check.prompts)) == max(PROBE_LENGTHS) > 128
        for seed in range(3):
            assert check.check().max() < 1e-4
            move(policy, 0.05, seed)
            vllm.sync()

    def test_the_probe_catches_a_stale_adapter(self, vllm, policy, config, tmp_path, monkeypatch):
        """vLLM's own way with a known LoRA id: new files, and the old weights without a word."""
        from vllm.lora.request import LoRARequest

        from capo_ds.rollout.vllm_internals import ADAPTER_ID

        check = probe(vllm, policy, config)
        check.check()
        move(policy, 0.05, seed=2)

        def from_disk(tensors, settings):
            policy.save_pretrained(tmp_path)
            request = LoRARequest("policy", ADAPTER_ID, str(tmp_path))
            vllm._llm.llm_engine.add_lora(request)
            assert vllm._llm.reset_prefix_cache()

        monkeypatch.setattr(vllm, "_push", from_disk)
        vllm.sync()
        with pytest.raises(SamplerMismatch, match="still has the old weights") as error:
            check.check()
        assert "rollout.probe_bound = 0.001" in str(error.value)
        monkeypatch.undo()
        vllm.sync()
        check.check()

    def test_the_probe_catches_a_prefix_cache_that_survives(
        self, vllm, policy, config, monkeypatch
    ):
        check = probe(vllm, policy, config)
        check.check()
        move(policy, 0.05, seed=2)
        monkeypatch.setattr(vllm._llm, "reset_prefix_cache", lambda: True)
        vllm.sync()
        with pytest.raises(SamplerMismatch, match="prefix cache holds values of the old weights"):
            check.check()
        monkeypatch.undo()
        vllm.sync()
        check.check()

    def test_the_probe_catches_a_missing_adapter(self, vllm, policy, config, monkeypatch):
        check = probe(vllm, policy, config)
        monkeypatch.setattr(
            colocated,
            "adapter_tensors",
            lambda policy: {name: 0 * value for name, value in adapter_tensors(policy).items()},
        )
        vllm.sync()
        with pytest.raises(SamplerMismatch, match="runs without the adapter"):
            check.check()

    def test_the_probe_catches_corrupted_weights(self, vllm, policy, config, monkeypatch):
        check = probe(vllm, policy, config)
        for spoil, text in ((3.0, "neither the new nor the old"), (float("nan"), "not finite")):
            monkeypatch.setattr(
                colocated,
                "adapter_tensors",
                lambda policy, spoil=spoil: {
                    name: spoil * value for name, value in adapter_tensors(policy).items()
                },
            )
            vllm.sync()
            with pytest.raises(SamplerMismatch, match=text):
                check.check()

    @pytest.mark.parametrize("name", ["self_attn.g_proj", "self_attn.q_proj.extra"])
    def test_a_tensor_without_a_place_is_an_error(self, vllm, policy, name):
        tensors, prefix = adapter_tensors(policy), "base_model.model.model.layers.0."
        for factor in ("lora_A", "lora_B"):
            value = tensors[f"{prefix}self_attn.q_proj.{factor}.weight"]
            tensors[f"{prefix}{name}.{factor}.weight"] = value
        with pytest.raises(ValueError, match=rf"16 of the adapter's 18 tensors.*{name}"):
            vllm._push(tensors, adapter_settings(policy))

    def test_half_a_layer_is_an_error(self, vllm, policy):
        tensors = adapter_tensors(policy)
        del tensors[next(name for name in tensors if "lora_B" in name)]
        with pytest.raises(ValueError, match="lacks one of its two factors"):
            vllm._push(tensors, adapter_settings(policy))

    def test_an_adapter_that_vllm_cannot_run_is_an_error(self, vllm, policy):
        settings = adapter_settings(policy) | {"use_dora": True}
        with pytest.raises(ValueError, match="DoRA"):
            vllm._push(adapter_tensors(policy), settings)

    def test_a_hanging_engine_ends_the_wait_and_tells_where_it_is(self, vllm, monkeypatch):
        monkeypatch.setattr(vllm._thread, "limit", 0.2)
        answered = threading.Event()
        monkeypatch.setattr(vllm._llm, "generate", lambda *args, **kwargs: answered.wait(60))
        with pytest.raises(
            TimeoutError, match=r"sampling has taken .*rollout\.timeout = 0\.2"
        ) as e:
            greedy(vllm, PROMPTS)
        answered.set()
        assert "answered.wait(60)" in str(e.value)

    def test_an_error_of_the_engine_keeps_its_text(self, vllm, monkeypatch):
        def fails(*args, **kwargs):
            raise RuntimeError("out of blocks")

        monkeypatch.setattr(vllm._llm, "generate", fails)
        with pytest.raises(RuntimeError, match="out of blocks"):
            greedy(vllm, PROMPTS)

    def test_the_process_keeps_its_threads(self, vllm):
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)  # vLLM would have this do nothing
        assert torch.get_num_threads() == threads + 1
        torch.set_num_threads(threads)


def test_adapter_tensors_are_copies_of_all_factors(policy):
    tensors = adapter_tensors(policy)
    expected = get_peft_model_state_dict(policy)
    assert tensors.keys() == expected.keys() and len(tensors) == len(trainable(policy)) == 16
    for name, value in tensors.items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() != expected[name].data_ptr()


def test_ranks_that_vllm_prepares_for():
    assert [max_rank(rank) for rank in (1, 2, 8, 33, 512)] == [1, 8, 8, 64, 512]
    with pytest.raises(ValueError, match=r"model\.lora_rank.*513"):
        max_rank(513)


def test_without_vllm_one_line_says_what_to_install(policy, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[vllm\]'"):
        ColocatedSampler(policy, ENDS, PAD, CONTEXT, config, "test")


@pytest.mark.vllm
def test_ranks_that_do_not_fall_into_groups(policy, config):
    shared = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"tensor_parallel": 2})}
    )
    with pytest.raises(ConfigError, match=r"rollout\.tensor_parallel: 2 does not divide 1 ranks"):
        ColocatedSampler(policy, ENDS, PAD, CONTEXT, shared, "test")


def test_seeds_of_requests_differ_by_draw():
    seeds = {request_seed(Draw(a, b, c)) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64 and max(seeds) < 2**62


def test_a_wait_ends_with_the_functions_own_timeout():
    def slow():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        EngineThread(limit=5).call("a call", slow)


@pytest.mark.parametrize("vocabulary", [3, 90, 8 * BLOCK, 8 * BLOCK + 1, 20 * BLOCK])
def test_the_token_at_a_number_is_the_cumulative_sums(vocabulary):
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(64, vocabulary, generator=generator)).softmax(1)
    probs[:, ::3] = 0  # truncated away
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, np.nextafter(1.0, 0.0)])
    found = drawn(probs, uniform)
    below = (probs.double().cumsum(1) <= uniform[:, None] * probs.double().sum(1, True)).sum(1)
    last = vocabulary - 1 - (probs > 0).int().flip(1).argmax(1)
    assert torch.equal(found, below.minimum(last))
    assert (probs.gather(1, found[:, None]) > 0).all()
