"""The Hugging Face sampler against `generate` and the trainer's own log-probabilities."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from capo_ds.models import token_log_probs
from capo_ds.rollout.base import uniforms
from capo_ds.rollout.hf import HuggingFaceSampler

EOS, PAD, LIMIT = 2, 0, 14
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [5, 9, 8, 30, 31]]


class Bare(Qwen2ForCausalLM):
    """What `token_log_probs` asks of a PEFT model, without an adapter."""

    def get_base_model(self):
        return self


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.25,
        eos_token_id=EOS,
        pad_token_id=PAD,
        use_cache=True,
    )
    model = Bare(config).eval()
    model.lm_head.weight.data[EOS] *= 1.5  # so that some responses end early
    return model


def sampler(model, batch_size: int = 64) -> HuggingFaceSampler:
    return HuggingFaceSampler(model, EOS, PAD, LIMIT, batch_size)


def noise(samples: int) -> np.ndarray:
    return np.stack([uniforms(0, 3, prompt, samples, LIMIT) for prompt in range(len(PROMPTS))])


def tokens(rollout) -> list[list[int]]:
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def test_greedy_is_generates(model):
    expected = []
    for prompt in PROMPTS:
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=LIMIT)
        expected.append(output[0, len(prompt) :].tolist())
    assert tokens(sampler(model).greedy(PROMPTS)) == expected


def test_log_probs_entropy_and_flags(model):
    rollout = sampler(model).sample(PROMPTS, noise(8), temperature=1.3)
    ended = [EOS in completion for completion in tokens(rollout)]
    assert 0 < sum(ended) < len(ended)  # both kinds occur
    assert rollout.truncated.tolist() == [not flag for flag in ended]
    for completion, flag in zip(tokens(rollout), ended, strict=True):
        assert completion.index(EOS) == len(completion) - 1 if flag else len(completion) == LIMIT
    arguments = rollout.input_ids(), rollout.attention_mask(), rollout.completion_mask
    with torch.no_grad():
        expected = token_log_probs(model, *arguments, temperature=1.3)
    torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)
    entropy = rollout.entropy[rollout.completion_mask]
    assert entropy.min() > 0 and entropy.max() < np.log(40)


@pytest.mark.parametrize("batch_size", [8, 17])
def test_samples_do_not_depend_on_the_batches(model, batch_size):
    expected = tokens(sampler(model).sample(PROMPTS, noise(8), 1.0))
    assert tokens(sampler(model, batch_size).sample(PROMPTS, noise(8), 1.0)) == expected
    alone = sampler(model).sample(PROMPTS[3:4], noise(8)[3:4], 1.0)
    assert tokens(alone) == expected[24:32]


def test_first_tokens_follow_the_distribution(model):
    draws = 4000
    uniform = uniforms(1, 0, 0, draws, LIMIT)[None]
    one = HuggingFaceSampler(model, EOS, PAD, 1, draws)
    rollout = one.sample(PROMPTS[:1], uniform[:, :, :1], temperature=0.7)
    counts = torch.bincount(rollout.completion_ids[:, 0], minlength=40)
    with torch.no_grad():
        logits = model(torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = torch.softmax(logits / 0.7, 0) * draws
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 2 * likely.sum() + 20


def test_no_prompts(model):
    rollout = sampler(model).sample([], noise(4)[:0], 1.0)
    assert len(rollout) == 0
    assert rollout.completion_ids.shape[0] == rollout.log_probs.shape[0] == 0


def test_take_trims_padding(model):
    rollout = sampler(model).sample(PROMPTS, noise(8), 1.0)
    shortest = int(rollout.lengths.argmin())
    part = rollout.take([shortest])
    assert part.completion_ids.shape == (1, int(rollout.lengths[shortest]))
    assert part.prompt_ids.shape == (1, len(PROMPTS[shortest // 8]))
    assert len(rollout.take([])) == 0
