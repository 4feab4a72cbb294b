"""Log-probabilities from one reading of each prompt, against a pass over whole rows."""

import functools

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from benchmarks.tiny_models import TEXT, build, settings
from capo_ds.models import load_policy, token_log_probs
from capo_ds.shared_prompts import (
    find_whether_prompts_are_read_once,
    read_prompts,
    reads_prompts_once,
    response_log_probs,
)

PLAIN = ["random", "soft caps"]
NOT_PLAIN = ["bamba", "qwen3_next", "mamba2", "rwkv", "gemma3", "recurrent_gemma"]


def policy_of(name, random_model, folder):
    if name == "random":
        return load_policy(settings(random_model).model, seed=0)
    if name == "soft caps":
        kinds = {"layer_types": ["full_attention"] * 2, "head_dim": 8}
        config = Gemma2Config(**TEXT | kinds | {"final_logit_softcapping": 2.0})
        Gemma2ForCausalLM(config).save_pretrained(folder)
    else:
        build(name, folder)
    return load_policy(settings(str(folder), lora_targets="all-linear").model, seed=0)


def rows():
    """Prompts of three lengths, responses of many, in no order."""
    generator = torch.Generator().manual_seed(1)
    prompt_mask = torch.arange(6) >= 6 - torch.tensor([[4], [6], [1]])
    prompt_ids = torch.randint(3, 199, (3, 6), generator=generator) * prompt_mask
    of_prompt = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    lengths = torch.tensor([[5], [1], [9], [2], [9], [3], [1]])
    completion_mask = torch.arange(9) < lengths
    completion_ids = torch.randint(3, 199, (7, 9), generator=generator) * completion_mask
    return prompt_ids, prompt_mask, of_prompt, completion_ids, completion_mask


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_prompt_read_once_gives_the_same(name, dtype, random_model, tmp_path):
    policy = policy_of(name, random_model, tmp_path)
    assert reads_prompts_once(policy)
    policy.to(dtype)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=dtype)
    prompt_ids, prompt_mask, of_prompt, completion_ids, completion_mask = rows()
    ids = torch.cat([prompt_ids[of_prompt], completion_ids], 1)
    mask = torch.cat([prompt_mask[of_prompt], completion_mask], 1).long()
    with torch.no_grad():
        expected = token_log_probs(policy, ids, mask, completion_mask, 0.7)
    read = read_prompts(policy, prompt_ids, prompt_mask)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for part in (torch.arange(7), torch.tensor([1, 6]), torch.tensor([3, 0])):
        width = int(completion_mask[part].sum(1).max())
        found = response_log_probs(
            policy,
            read,
            of_prompt[part],
            completion_ids[part, :width],
            completion_mask[part, :width],
            0.7,
        )
        torch.testing.assert_close(found, expected[part, :width], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_states_and_windows_are_not_gone_on_from(name, random_model, tmp_path):
    assert not reads_prompts_once(policy_of(name, random_model, tmp_path))


def test_a_model_whose_two_ways_disagree_is_found_out(random_model, monkeypatch):
    policy = load_policy(settings(random_model).model, seed=0)
    base = policy.get_base_model()
    forward = base.forward

    def forgetful(*args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            kwargs["position_ids"] = torch.zeros_like(kwargs["position_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(base, "forward", functools.wraps(forward)(forgetful))
    find_whether_prompts_are_read_once(policy, torch.device("cpu"))
    assert not reads_prompts_once(policy)
