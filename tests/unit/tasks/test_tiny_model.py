"""The model and tokenizer that ship with the project, against the task they were made for."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_ds.config import BUILTIN_MODELS, PromptConfig
from capo_ds.tasks import arithmetic, score
from capo_ds.tasks.demonstrations import STYLES
from capo_ds.tasks.prompts import render

FOLDER = BUILTIN_MODELS["builtin:tiny"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def problems(tokenizer):
    generated = arithmetic.generate("train", 2000, sorted(arithmetic.LEVELS), seed=11)
    return render(generated, PromptConfig(), tokenizer)


def test_texts_survive_the_tokenizer(tokenizer, problems):
    texts = [p.prompt + tell(p) for p in problems[:200] for tell in STYLES.values()]
    for text in [*texts, "Grüße, 東京!\n\t  \\boxed{-1,234.5}  ", "", " "]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_loading_through_transformers_keeps_the_trained_pieces(tokenizer, problems):
    trained = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for problem in problems[:200]:
        text = problem.prompt + problem.solution
        assert tokenizer.encode(text) == trained.encode(text).ids


def test_prompt_and_completion_do_not_merge(tokenizer, problems):
    for problem in problems[:200]:
        apart = tokenizer.encode(problem.prompt) + tokenizer.encode(problem.solution)
        assert tokenizer.encode(problem.prompt + problem.solution) == apart


def test_digits_are_tokens_of_their_own(tokenizer):
    assert len(tokenizer.encode("1234567890")) == 10


def test_special_tokens_are_distinct(tokenizer, model):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_texts_are_short(tokenizer, problems):
    assert max(len(tokenizer.encode(p.prompt)) for p in problems) < 60
    completions = [tell(p) for p in problems for tell in STYLES.values()]
    assert max(len(tokenizer.encode(text)) for text in completions) < 44


def test_model_is_small(model):
    assert 1e6 < model.num_parameters() < 3e6
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) < 6e6


def test_model_leaves_room_for_reinforcement_learning(model, tokenizer, judge):
    generated = arithmetic.generate("test", 128, [1, 2, 3], seed=0)
    problems = render(generated, PromptConfig(), tokenizer)
    inputs = tokenizer(
        [p.prompt for p in problems], return_tensors="pt", padding=True, padding_side="left"
    )
    with torch.no_grad():
        outputs = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    completions = outputs[:, inputs.input_ids.shape[1] :]
    verdicts = score(tokenizer.batch_decode(completions, skip_special_tokens=True), problems, judge)
    assert 0.25 < sum(verdict.correct for verdict in verdicts) / len(verdicts) < 0.55
