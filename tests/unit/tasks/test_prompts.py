import json
from datetime import date

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from capo_ds.config import BUILTIN_MODELS, ConfigError, PromptConfig, parse_config
from capo_ds.tasks import Problem
from capo_ds.tasks.prompts import TEMPLATES, cut, encode, fitting, render

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


LLAMA_DATE = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    '{% set date_string = strftime_now("%d %b %Y") %}{% else %}'
    '{% set date_string = "26 Jul 2024" %}{% endif %}{% endif %}{{ "Today Date: " + date_string }}'
)
DATES = [  # as Llama 3, SmolLM3 and gpt-oss ask for the day
    (LLAMA_DATE, {}, "Today Date: 26 Jul 2024"),
    (LLAMA_DATE, {"date": "2025-01-02"}, "Today Date: 02 Jan 2025"),
    (LLAMA_DATE, {"template_kwargs": {"date_string": "1 May 2020"}}, "Today Date: 1 May 2020"),
    ('{%- set today = strftime_now("%d %B %Y") -%}{{ today }}', {}, "26 July 2024"),
    ('{{ "Current date: " + strftime_now("%Y-%m-%d") }}', {}, "Current date: 2024-07-26"),
]


@pytest.mark.parametrize(("template", "settings", "told"), DATES)
def test_a_template_is_told_the_day_of_the_settings(tokenizer, template, settings, told):
    tokenizer.chat_template = template + CHAT
    tokenizer.bos_token = "<|pad|>"
    (problem,) = render([PROBLEM], PromptConfig(template="chat", **settings), tokenizer)
    assert problem.prompt.startswith(f"{told}<|pad|><user>")
    assert tokenizer.decode(problem.tokens) == problem.prompt
    given = {"chat_template": template + CHAT}
    tokenizer.chat_template = CHAT
    own = settings | {"template_kwargs": given | settings.get("template_kwargs", {})}
    if "date_string" not in own["template_kwargs"]:
        assert rendered(tokenizer, template="chat", **own).startswith(told)


@pytest.mark.parametrize(
    "day", ["2024-7-26", "26 Jul 2024", "2024-02-30", 20240726, "20240726", "2024-07-26 10:00:00"]
)
def test_a_day_that_is_none(day):
    with pytest.raises(
        ConfigError, match=rf"prompt\.date: bad value '?{day}'?; a day is written year"
    ):
        parse_config({"prompt": {"date": day}})
    assert parse_config({"prompt": {"date": date(2025, 1, 2)}}).prompt.date == "2025-01-02"


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


# ---------------------------------------------------------------- token ids, by kind of tokenizer

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if quiet %}<quiet>{% endif %}{% endif %}"
)


def made(kind: str, chat_template: str = TURNS) -> PreTrainedTokenizerFast:
    """A tokenizer that adds around a text: nothing, BOS, a prefix, EOS, or BOS and EOS."""
    words = sorted("abcdefghijklmnopqrstuvwxyzABQW:?.+ \n0123456789|<>\\{}$_")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "[gMASK]": 3, "<sop>": 4}
    vocabulary |= {word: number for number, word in enumerate(words, start=5)}
    if kind == "unigram":
        core = Tokenizer(models.Unigram([(word, -1.0) for word in vocabulary], unk_id=0))
    else:
        core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    shape = {"bos": "<s> $A", "unigram": "<s> $A", "glm": "[gMASK] <sop> $A", "t5": "$A </s>"}
    shape |= {"both": "<s> $A </s>", "bare": "$A"}
    special = [(name, vocabulary[name]) for name in ("<s>", "</s>", "[gMASK]", "<sop>")]
    core.post_processor = processors.TemplateProcessing(single=shape[kind], special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["[gMASK]", "<sop>"],
        chat_template=chat_template,
    )


KINDS = ["bare", "bos", "unigram", "glm", "t5", "both"]
CONVERSATION = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "a"}]
CONVERSATION += [{"role": "user", "content": "Q2"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begin", ["", "{{ bos_token }}", "[gMASK]<sop>"])
def test_chat_ids_are_apply_chat_templates(kind, begin):
    tokenizer = made(kind, begin + TURNS)
    config = PromptConfig(template="chat", instruction="", system="be quick")
    texts = [Problem("What is 1+1?", "2"), Problem("Q2", "2", messages=CONVERSATION)]
    rendered = render(texts, config, tokenizer)
    system = {"role": "system", "content": "be quick"}
    chats = [[system, {"role": "user", "content": "What is 1+1?"}], [system, *CONVERSATION]]
    for problem, ids, chat in zip(rendered, encode(tokenizer, rendered), chats, strict=True):
        expected = tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert ids == expected == list(problem.tokens)
        assert problem.prompt == tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )


@pytest.mark.parametrize("kind", KINDS)
def test_plain_ids_begin_as_the_tokenizer_begins_and_never_end(kind):
    tokenizer = made(kind)
    (problem,) = render([Problem("1+1?", "2")], PromptConfig(template="{problem}"), tokenizer)
    begins = {"bare": [], "bos": [1], "unigram": [1], "glm": [3, 4], "t5": [], "both": [1]}[kind]
    text = tokenizer("1+1?", add_special_tokens=False).input_ids
    assert list(problem.tokens) == begins + text
    (own,) = render([Problem("1+1?", "2")], PromptConfig(template="<s>{problem}"), tokenizer)
    if begins in ([], [1]):
        assert list(own.tokens) == [1, *text]  # begun once


def test_template_arguments_and_a_begun_answer():
    tokenizer = made("bos")
    problem = Problem("Q", "1", messages=[*CONVERSATION, {"role": "assistant", "content": "so 1"}])
    config = PromptConfig(template="chat", template_kwargs={"quiet": True})
    assert render([Problem("Q", "1")], config, tokenizer)[0].prompt.endswith("<quiet>")
    assert render([problem], config, tokenizer)[0].prompt.endswith("so 1")
    for name, text in (("quiett", "has no variable 'quiett'"), ("tokenize", "decided by capo_ds")):
        wrong = PromptConfig(template="chat", template_kwargs={name: True})
        with pytest.raises(ConfigError, match=text):
            render([problem], wrong, tokenizer)


def test_what_a_row_gives_the_chat_template(capfd):
    """Tools and arguments, as TRL's data sets have them; Parquet's nulls left out."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"a": None}}}
    bare = {"type": "function", "function": {"name": "add", "parameters": {}}}
    quiet = {"quiet": True, "loud": None}
    rows = [{"tools": [tool], "chat_template_kwargs": quiet}]
    rows += [{name: json.dumps(value) for name, value in rows[0].items()}]
    tokenizer = made("bos", "{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS)
    config = PromptConfig(template="chat")
    for row in rows:
        (found,) = render([Problem("Q", "1", columns=row)], config, tokenizer)
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Q\n" + TEMPLATES["chat"].instruction}],
            tools=[bare],
            quiet=True,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert list(found.tokens) == expected and found.prompt.endswith("<quiet>")
    own = Problem("Q", "1", columns={"tools": "hammer", "chat_template_kwargs": 3})  # a task's own
    assert not render([own], config, made("bos"))[0].prompt.endswith("<quiet>")
    assert capfd.readouterr().err == ""
    render([Problem("Q", "1", columns=rows[0])], config, made("bos"))
    assert "has no variable tools, which the data set's rows" in capfd.readouterr().err
    wrong = Problem("Q", "1", columns={"chat_template_kwargs": {"tokenize": False}})
    with pytest.raises(ConfigError, match="tokenize is decided by capo_ds"):
        render([wrong], config, tokenizer)


def test_conversations_where_they_have_no_place():
    talk = Problem("Q2", "1", messages=CONVERSATION)
    single = Problem("Q1", "1", messages=CONVERSATION[:1])
    tokenizer = made("bare")
    with pytest.raises(ConfigError, match="no place for conversations"):
        render([talk], PromptConfig(template="{problem}"), tokenizer)
    assert render([single], PromptConfig(template="{problem}"), tokenizer)[0].prompt == "Q1"
    refusing = made("bare", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ConfigError, match=r"problem 0 .*user, assistant, user.*must alternate"):
        render([talk], PromptConfig(template="chat"), refusing)


@pytest.mark.parametrize(
    "settings", [{"stop": [""]}, {"system": "s"}, {"template_kwargs": {"quiet": True}}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=r"prompt|at least 1 character"):
        PromptConfig(**settings)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
            "parts",
        ),
        ("llava", "the prompt is 'llava' whatever the problem is"),  # a name, taken for a template
        ("{{ 1 / 0 }}", "does not take problem 0 .*ZeroDivisionError"),
        ("{% for m in messages %}", "does not take problem 0 .*TemplateSyntaxError"),
    ],
)
def test_templates_that_lose_the_problem_or_fail(template, message):
    with pytest.raises(ConfigError, match=message):
        render([PROBLEM], PromptConfig(template="chat"), made("bare", template))


def test_a_template_that_loses_the_system_message_is_told():
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"leaves out the system message; set prompt\.system to"):
        render([PROBLEM], PromptConfig(template="chat", system="be quick"), made("bare", template))
    talk = Problem("Q", "2", messages=[{"role": "system", "content": "x"}, *CONVERSATION])
    with pytest.raises(ConfigError, match="leaves out the system message; take it out of the data"):
        render([talk], PromptConfig(template="chat"), made("bare", template))
    render([PROBLEM], PromptConfig(template="chat"), made("bare", template))
