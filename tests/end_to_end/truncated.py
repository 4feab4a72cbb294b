"""What a vLLM sampler draws, against the model's own distributions: truncated.py ARGUMENTS.

Prints one JSON object: the largest difference of a log-probability from that of the truncated
distribution of the model, in nats, and how many of the tokens drawn were cut off in it, for each
truncation; and for each stop text (special tokens too) whether the greedy responses are those of
the Hugging Face sampler, and how many of them it ended.
"""

import argparse
import json
import uuid

import torch

from capo_ds.config import load_config
from capo_ds.distributed import comm
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.rollout.base import WHOLE, Draw, Sampler, SamplerRun, Truncation
from capo_ds.rollout.choose import sampler_maker
from capo_ds.rollout.drawing import truncate
from capo_ds.rollout.hf import hf
from capo_ds.rollout.rollout import Rollout
from capo_ds.tasks import load_problems
from capo_ds.tasks.prompts import encode, render

TRUNCATIONS = {
    "all": WHOLE,
    "top_p": Truncation(top_p=0.7),
    "top_k": Truncation(top_k=3),
    "min_p": Truncation(min_p=0.2),
    "together": Truncation(top_p=0.9, top_k=6, min_p=0.02),
}
TEMPERATURE, GROUP = 1.3, 8


def differences(run: SamplerRun, rollout: Rollout, truncation: Truncation) -> tuple[float, int]:
    """Of the log-probabilities, the largest; and the number of tokens drawn that are cut off."""
    with torch.no_grad():
        ids, mask = rollout.input_ids(), rollout.attention_mask()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = run.policy(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    width = rollout.completion_ids.shape[1]
    whole = (logits[:, -width - 1 : -1].float() / TEMPERATURE).log_softmax(-1)
    cut = truncate(whole.flatten(0, 1), truncation).view_as(whole)
    own = cut.gather(2, rollout.completion_ids[..., None])[..., 0][rollout.completion_mask]
    told = rollout.log_probs[rollout.completion_mask]
    inside = own.isfinite()
    return float((own - told)[inside].abs().max()), int((~inside).sum())


def stops(sampler: Sampler, other: Sampler, prompts: list[list[int]]) -> dict:
    draws = [Draw(0, 0, number) for number in range(len(prompts))]
    mine, theirs = (one.sample(prompts, draws, 1, 0.0) for one in (sampler, other))
    return {
        "equal": bool(
            torch.equal(mine.completion_ids, theirs.completion_ids)
            and torch.equal(mine.completion_mask, theirs.completion_mask)
            and torch.equal(mine.truncated, theirs.truncated)
        ),
        "ended": int((~mine.truncated).sum()),
        "lengths": mine.lengths.tolist(),
    }


parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--set", action="append", default=[])
arguments = parser.parse_args()
config = load_config(arguments.config, arguments.set)
comm.init()
tokenizer = load_tokenizer(config.model)
policy = load_policy(config.model, seed=0)
problems = render(load_problems(config.task, "train")[:6], config.prompt, tokenizer)
prompts = encode(tokenizer, problems)
run = SamplerRun(config, policy, tokenizer, uuid.uuid4().hex, loads=True)
sampler = sampler_maker(config)(run)
answer: dict = {"stop": {}, "truncation": {}}
with sampler.awake():
    sampler.sync()
    answer["stop"] = stops(sampler, hf(run), prompts)
    if not config.prompt.stop:
        draws = [Draw(0, 1, number) for number in range(len(prompts))]
        for name, truncation in TRUNCATIONS.items():
            rollout = sampler.sample(prompts, draws, GROUP, TEMPERATURE, truncation=truncation)
            answer["truncation"][name] = differences(run, rollout, truncation)
print(json.dumps(answer), flush=True)
comm.finish()
