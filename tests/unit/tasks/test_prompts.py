import pytest
from transformers import AutoTokenizer

from capo_ds.config import BUILTIN_MODELS, ConfigError, PromptConfig
from capo_ds.tasks import Problem
from capo_ds.tasks.prompts import cut, encode, fitting, render

PROBLEM = Problem(prompt="What is $\\frac{1}{2}${instruction}?", answer="1")  # braces of all kinds
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BUILTIN_MODELS["builtin:tiny"])


def rendered(tokenizer, **settings) -> str:
    return render([PROBLEM], PromptConfig(**settings), tokenizer)[0].prompt


def test_templates(tokenizer):
    tokenizer.chat_template, tokenizer.bos_token = CHAT, "<|pad|>"
    text, reason = PROBLEM.prompt, r"Please reason step by step, and put your final answer within"
    assert rendered(tokenizer) == text + " Put the final answer in \\boxed{}.\n"
    assert rendered(tokenizer, template="base") == (
        f"Question: {text}\n{reason} \\boxed{{}}.\nAnswer:\n"
    )
    assert rendered(tokenizer, template="chat") == (
        f"<|pad|><user>{text}\n{reason} \\boxed{{}}.<assistant>"
    )
    assert rendered(tokenizer, template="Q: {problem}\nA:") == f"Q: {text}\nA:"
    assert rendered(tokenizer, template="base", instruction="Box it.") == (
        f"Question: {text}\nBox it.\nAnswer:\n"
    )


def test_a_chat_prompt_is_begun_once(tokenizer):
    tokenizer.chat_template, tokenizer.bos_token = CHAT, "<|pad|>"
    (ids,) = encode(tokenizer, render([PROBLEM], PromptConfig(template="chat"), tokenizer))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert encode(tokenizer, []) == []


def test_a_tokenizer_without_chat_template_is_told(tokenizer):
    with pytest.raises(ConfigError, match=r"prompt.template: chat, but .* use base"):
        rendered(tokenizer, template="chat")


def test_long_prompts_are_left_out(tokenizer):
    problems = [Problem("word " * n, "1") for n in (1, 30, 2)]
    assert fitting(problems, tokenizer, max_prompt_tokens=20) == [problems[0], problems[2]]
    with pytest.raises(ConfigError, match="max_prompt_tokens: 1 leaves none of 3"):
        fitting(problems, tokenizer, max_prompt_tokens=1)


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("a\n\nQuestion: b", ["\n\nQuestion:"], "a"),
        ("a Q b END", ["END", "Q"], "a "),
        ("a", ["b"], "a"),
        ("a", [], "a"),
    ],
)
def test_cut(text, stop, kept):
    assert cut(text, stop) == kept
