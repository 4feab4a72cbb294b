"""Tokenizers of every kind that models come with: token ids, text and stop strings.

SentencePiece models are trained here; they are skipped where the package is not installed.
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from capo_ds.config import ConfigError, PromptConfig
from capo_ds.models import load_tokenizer
from capo_ds.rollout.hf import stop_at
from capo_ds.tasks.base import Problem
from capo_ds.tasks.prompts import render, text_before

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
TURNS += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SENTENCE = (
    "the answer is so What of \\boxed { } Question: don 't it 's 12 + 3 = 15 , . ! ? a b é x y 1, 2"
)
TEXTS = ["the answer is 12 + 3 = 15 .", "\\boxed{15}", "it 's , don 't .", "x = 1, y = 2 ! ?"]
WHOLE = ["a  b\n\nQuestion: x", "é中é"]  # texts that byte-wise tokenizers keep, and T5's do not
STOPS = ["Question:", "\n\n", " .", "。", "中", "é中", " a", "</s>", "b</s>", ", don"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PIECES = {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
PIECES |= {"byte_fallback": True, "allow_whitespace_only_pieces": True, "split_digits": True}
# kind: file of the SentencePiece model, the rest of tokenizer_config.json
SENTENCEPIECE = {
    "LlamaTokenizer": ("tokenizer.model", {}),
    "LlamaTokenizer, begins and ends": (
        "tokenizer.model",
        {"legacy": False, "add_bos_token": True, "add_eos_token": True},
    ),
    "GemmaTokenizer": ("tokenizer.model", {"pad_token": "<unk>"}),
    "GPTSw3Tokenizer": ("spiece.model", {"pad_token": "<unk>"}),  # slow: Python's
    "GPTSw3Tokenizer, tidy": (
        "spiece.model",
        {"pad_token": "<unk>", "clean_up_tokenization_spaces": True},
    ),
}
UNIGRAM = "T5Tokenizer"
KINDS = [*SENTENCEPIECE, UNIGRAM, "bytes of Python", "bytes in pairs"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    draw = random.Random(0)
    lines = [" ".join(draw.choices(SENTENCE.split(), k=12)) for _ in range(500)]
    file = tmp_path_factory.mktemp("corpus") / "lines.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pieces(corpus) -> dict[str, Path]:
    """A SentencePiece model by pairs with bytes, and one as T5's."""
    if not find_spec("sentencepiece"):
        return {}
    from sentencepiece import SentencePieceTrainer

    settings = {
        "bpe": PIECES | {"vocab_size": 340},
        "unigram": {"vocab_size": 80, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    }
    for kind, own in settings.items():
        SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(corpus.with_name(kind)),
            model_type=kind,
            hard_vocab_limit=False,
            minloglevel=2,
            **own,
        )
    return {kind: corpus.with_name(f"{kind}.model") for kind in settings}


@pytest.fixture(params=KINDS)
def tokenizer(request, corpus, pieces, tmp_path):
    """As a run loads it from a folder."""
    kind = request.param
    if kind == "bytes of Python":
        tokenizer = ByT5Tokenizer(extra_ids=2)
        tokenizer.chat_template = TURNS
        tokenizer.save_pretrained(tmp_path)
    elif kind == "bytes in pairs":
        in_pairs(corpus).save_pretrained(tmp_path)
    elif not pieces:
        pytest.skip("needs sentencepiece")
    else:
        file, settings = SENTENCEPIECE.get(kind, ("spiece.model", {"pad_token": "<pad>"}))
        model = pieces["unigram" if kind == UNIGRAM else "bpe"]
        (tmp_path / file).write_bytes(model.read_bytes())
        own = {"tokenizer_class": kind.partition(",")[0], "chat_template": TURNS}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | SPECIAL | own))
    return load_tokenizer(str(tmp_path))


def in_pairs(corpus: Path) -> PreTrainedTokenizerFast:
    """GPT-2's kind: a letter may be several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    core.train([str(corpus)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", chat_template=TURNS)


def tokens_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_chat_ids_are_apply_chat_templates(tokenizer):
    (problem,) = render([Problem("15 ?", "2")], PromptConfig(template="chat"), tokenizer)
    content = problem.prompt.removeprefix("<|user|>").removesuffix("\n<|assistant|>")
    assert content.startswith("15 ?\nPlease")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(problem.tokens) == expected


def test_plain_ids_begin_as_the_tokenizer_begins_and_never_end(tokenizer):
    (problem,) = render([Problem("15 ?", "2")], PromptConfig(template="{problem}"), tokenizer)
    whole = tokenizer("15 ?").input_ids
    ends = whole[-1:] == [tokenizer.eos_token_id]
    assert list(problem.tokens) == (whole[:-1] if ends else whole)


def test_text_comes_back_letter_by_letter(tokenizer):
    """`15 .` must not become `15.`: the judge, and a stop string, would read what was not said."""
    keeps_all = type(tokenizer).__name__ != UNIGRAM
    for text in TEXTS + WHOLE * keeps_all:
        ids = tokens_of(tokenizer, text)
        assert text_before(tokenizer, ids, []) == text
        assert text_before(tokenizer, [*ids, tokenizer.eos_token_id], []) == text


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_ends_a_response_where_its_text_has_it(tokenizer, stop):
    ids = tokens_of(tokenizer, f"What is b{stop} it a")
    texts = [
        tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)
        for n in range(1, len(ids) + 1)
    ]
    has = [stop in text for text in texts]
    ended = stop_at(tokenizer, [stop, "never said"])
    stops = [bool(ended(torch.tensor([ids[:n]]))) for n in range(1, len(ids) + 1)]
    assert stops == has
    if any(has):
        kept = text_before(tokenizer, ids, [stop])
        assert kept.strip() == texts[-1].partition(stop)[0].strip()
    else:  # it holds what the tokenizer has no tokens for
        assert type(tokenizer).__name__ == UNIGRAM


@pytest.mark.skipif(bool(find_spec("sentencepiece")), reason="sentencepiece is there")
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GPTSw3Tokenizer"])
def test_sentencepiece_without_the_package(kind, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"a model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(ConfigError, match=r"tokenizer\.model .*pip install sentencepiece$"):
        load_tokenizer(str(tmp_path))
