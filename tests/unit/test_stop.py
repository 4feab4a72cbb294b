"""Stop strings end a response where they are complete, also inside a token."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_ds.config import BUILTIN_MODELS
from capo_ds.rollout.hf import HuggingFaceSampler, stop_at
from capo_ds.tasks.prompts import decode, text_before
from tests.conftest import greedy

TINY = BUILTIN_MODELS["builtin:tiny"]
PROMPT = "Tom has 3 boxes of 4 apples. He sells 2. How many apples does Tom have now? "
PROMPT += "Put the final answer in \\boxed{}.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def sample_until(tokenizer, stop):
    sampler = HuggingFaceSampler(
        AutoModelForCausalLM.from_pretrained(TINY),
        ends=[tokenizer.eos_token_id],
        pad=tokenizer.pad_token_id,
        max_new_tokens=16,
        batch_size=4,
        stop=stop_at(tokenizer, stop),
    )
    return greedy(sampler, [tokenizer.encode(PROMPT), tokenizer.encode("Ann has 5 eggs.")])


def test_a_response_ends_with_its_stop_string(tokenizer):
    whole = decode(tokenizer, sample_until(tokenizer, []))
    assert "boxed" in whole[0]
    rollout = sample_until(tokenizer, ["box"])  # a token of the tokenizer goes on: \boxed{
    full = decode(tokenizer, rollout)
    assert full[0].startswith(whole[0][: whole[0].index("box") + 3])
    assert len(full[0]) < len(whole[0])
    assert decode(tokenizer, rollout, ["box"])[0] == whole[0][: whole[0].index("box")]
    assert not rollout.truncated[0]


def test_rows_without_a_stop_string_are_as_they_were(tokenizer):
    plain, stopped = sample_until(tokenizer, []), sample_until(tokenizer, ["no such text"])
    torch.testing.assert_close(stopped.completion_ids, plain.completion_ids)
    assert torch.equal(stopped.truncated, plain.truncated)


def test_ends_of_token_ids(tokenizer):
    ended = stop_at(tokenizer, ["\n\nQ:", "###"])
    texts = ["a\n\nQ:", "a ###", "a\n\nQ", "## a"]
    for text, expected in zip(texts, [True, True, False, False], strict=True):
        assert ended(torch.tensor([tokenizer.encode(text)])).tolist() == [expected], text


@pytest.mark.parametrize("stop", ["<|turn|>", "<|turn|>\n", "5<|turn|>"])
def test_a_special_token_stops_and_is_cut_off(tokenizer, stop):
    own = AutoTokenizer.from_pretrained(TINY)
    own.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    ids = own.encode("16 + 5<|turn|>\n", add_special_tokens=False)
    ended = stop_at(own, [stop])
    lasts = [bool(ended(torch.tensor([ids[:n]]))) for n in range(1, len(ids) + 1)]
    assert lasts.index(True) + 1 == len(ids) - (0 if stop.endswith("\n") else 1)
    kept = text_before(own, ids, [stop])
    assert kept == ("16 + " if stop.startswith("5") else "16 + 5")
    assert text_before(own, ids, []) == "16 + 5\n"
