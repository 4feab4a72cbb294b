r"""From a problem's text to the prompt that a model reads.

The template belongs to the model's family: a base model continues a text, an instruction-tuned one
answers in its chat template. All ask for the format that `rewards` checks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from capo_ds.decoding import texts_of
from capo_ds.tasks.base import Problem
from capo_ds.tasks.columns import template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from capo_ds.config import PromptConfig
    from capo_ds.rollout.rollout import Rollout

REASON_AND_BOX = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class Template:
    """Text around `{problem}` and `{instruction}`, and the usual instruction."""

    text: str
    instruction: str


TEMPLATES = {
    # What the embedded model was warmed up on.
    "plain": Template("{problem} {instruction}\n", r"Put the final answer in \boxed{}."),
    "base": Template("Question: {problem}\n{instruction}\nAnswer:\n", REASON_AND_BOX),
    # The user's message, wrapped by the tokenizer; the words are those of Qwen2.5-Math.
    "chat": Template("{problem}\n{instruction}", REASON_AND_BOX),
}


SYSTEM = ("system", "developer")  # roles
OWN_ARGUMENTS = {"conversation", "tokenize", "add_generation_prompt", "continue_final_message"}
OWN_ARGUMENTS |= {"padding", "truncation", "max_length", "return_tensors", "return_dict"}
OWN_ARGUMENTS |= {"messages"}
OWN_ARGUMENTS |= {"return_assistant_tokens_mask", "tokenizer_kwargs"}


def render(
    problems: Sequence[Problem], config: PromptConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Problem]:
    """The problems with their prompts as the model reads them, as text and as token ids.

    Raises:
        ConfigError: the tokenizer has no chat template, or its template does not take the
            prompts, the system message or the arguments; or a conversation meets a template that
            is none of a chat.
    """
    template = TEMPLATES.get(config.template, Template(config.template, REASON_AND_BOX))
    instruction = template.instruction if config.instruction is None else config.instruction
    text = template.text
    if not instruction and config.template in TEMPLATES:  # nor what parts it from the problem
        text = text.replace(" {instruction}", "").replace("\n{instruction}", "")
    # The instruction first: a problem's text may hold braces of any kind.
    text = text.replace("{instruction}", instruction)
    if config.template == "chat":
        _check_chat(config, tokenizer)
        # What the data set's own conversations ask for, they say themselves.
        addition = f"\n{config.instruction}" if config.instruction else ""
        return _as_chats(
            [_messages(problem, text, addition, config.system) for problem in problems],
            problems,
            config,
            tokenizer,
        )
    for problem in problems:
        _check_plain(problem, config.template)
    texts = [text.replace("{problem}", problem.prompt) for problem in problems]
    return [
        replace(problem, prompt=prompt, tokens=tuple(ids))
        for problem, prompt, ids in zip(problems, texts, _begun(tokenizer, texts), strict=True)
    ]


def _messages(
    problem: Problem, text: str, addition: str, system: str | None
) -> list[dict[str, Any]]:
    """The conversation of one problem. addition: to the last message of the user's."""
    if problem.messages is None:
        messages = [{"role": "user", "content": text.replace("{problem}", problem.prompt)}]
    else:
        messages = [dict(message) for message in problem.messages]
        for message in reversed(messages):
            if addition and message["role"] == "user":
                message["content"] += addition
                break
    if system is not None and messages[0]["role"] not in SYSTEM:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _as_chats(
    chats: Sequence[list[dict[str, Any]]],
    problems: Sequence[Problem],
    config: PromptConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Problem]:
    """Text and token ids by `apply_chat_template` itself. A last message of the assistant's is
    gone on with, any other is answered, as TRL does."""
    from capo_ds.config import ConfigError

    rendered, clock = [], _clock(config, tokenizer)
    asked: set[str] = set()
    for number, (messages, problem) in enumerate(zip(chats, problems, strict=True)):
        goes_on = messages[-1]["role"] == "assistant"
        own = {"continue_final_message": goes_on, "add_generation_prompt": not goes_on}
        own |= config.template_kwargs | clock
        try:
            of_row = template_arguments(problem.columns)
            if taken := sorted(of_row.keys() & OWN_ARGUMENTS):
                raise ValueError(f"{taken[0]} is decided by capo_ds")
            own |= of_row
            text = tokenizer.apply_chat_template(messages, tokenize=False, **own)
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **own)
            if number == 0:
                other = [*messages[:-1], messages[-1] | {"content": f"{messages[-1]['content']}7"}]
                again = tokenizer.apply_chat_template(other, tokenize=False, **own)
                _check_read(cast(str, text), cast(str, again))
                if len(messages) > 1 and messages[0]["role"] in SYSTEM:
                    other = [messages[0] | {"content": f"{messages[0]['content']}7"}, *messages[1:]]
                    again = tokenizer.apply_chat_template(other, tokenize=False, **own)
                    _check_system(text == again, problem)
        except ConfigError:
            raise
        except Exception as error:  # templates are programs, and raise what they like
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"prompt.template: the tokenizer's chat template does not take problem {number} "
                f"(messages: {roles}): {type(error).__name__}: {error}; change the data, "
                "prompt.system or prompt.template_kwargs"
            ) from error
        asked.update(of_row)
        kept = None if problem.messages is None else messages
        rendered.append(replace(problem, prompt=text, messages=kept, tokens=tuple(ids)))
    _tell_unread(asked, f"{config.template_kwargs.get('chat_template')} {tokenizer.chat_template}")
    return rendered


def _tell_unread(asked: set[str], source: str) -> None:
    """Of what the data set's rows give the template, what its source does not look at."""
    from capo_ds.distributed.launch import tell

    unread = sorted(name for name in asked if not re.search(rf"\b{re.escape(name)}\b", source))
    if unread:
        tell(
            "prompt.template: the tokenizer's chat template has no variable "
            f"{', '.join(unread)}, which the data set's rows give it: no prompt says it"
        )


def _clock(config: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tells the chat template the day, if it asks; in the place of the machine's clock."""
    if not asks_the_day(config, tokenizer):
        return {}
    return {"strftime_now": datetime.fromisoformat(config.date).strftime}


def asks_the_day(config: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template may ask for the day (or another of the tokenizer's, where it has
    several by name)."""
    sources = config.template_kwargs.get("chat_template"), tokenizer.chat_template
    return config.template == "chat" and any("strftime_now" in str(one) for one in sources)


def _check_read(text: str, other: str) -> None:
    """Raises `ConfigError` where a prompt does not change with what its last message says."""
    from capo_ds.config import ConfigError

    if text == other:
        raise ConfigError(
            "prompt.template: the tokenizer's chat template leaves out what the messages say: the "
            f"prompt is {text!r:.100} whatever the problem is (some take contents in parts alone, "
            "as for images); give another, prompt.template_kwargs={chat_template: ...}, or set "
            "prompt.template to base"
        )


def _check_system(same: bool, problem: Problem) -> None:
    """Raises `ConfigError` where a prompt does not change with its system message."""
    from capo_ds.config import ConfigError

    if same:
        of_data = problem.messages and problem.messages[0]["role"] in SYSTEM
        where = "take it out of the data" if of_data else "set prompt.system to null"
        raise ConfigError(
            "prompt.template: the tokenizer's chat template leaves out the system message; "
            f"{where}, and say what it says in prompt.instruction, or give another template, "
            "prompt.template_kwargs={chat_template: ...}"
        )


def _check_chat(config: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ConfigError` where there is no chat template, or it lacks one of the variables."""
    from capo_ds.config import ConfigError

    if not tokenizer.chat_template:
        raise ConfigError(
            "prompt.template: chat, but the model's tokenizer has no chat template; use base"
        )
    source = str(tokenizer.chat_template)
    for name in config.template_kwargs:
        if name in OWN_ARGUMENTS:
            raise ConfigError(f"prompt.template_kwargs: {name} is decided by capo_ds; remove it")
        known = re.search(rf"\b{re.escape(name)}\b", source)
        if name not in ("chat_template", "tools", "documents") and not known:
            raise ConfigError(
                f"prompt.template_kwargs: the tokenizer's chat template has no variable {name!r}; "
                "remove it, or spell it as the template does"
            )


def _check_plain(problem: Problem, template: str) -> None:
    """Raises `ConfigError` for a conversation that is more than one message of the user's."""
    from capo_ds.config import ConfigError

    if problem.messages and [message["role"] for message in problem.messages] != ["user"]:
        roles = ", ".join(message["role"] for message in problem.messages)
        raise ConfigError(
            f"prompt.template: {template!r} has no place for conversations, which the data set "
            f"holds ({roles}); set it to chat"
        )


def _begun(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts as token ids, begun as the tokenizer begins a text, but not twice, and never ended.

    What the tokenizer puts before a text (BOS, `[gMASK]<sop>`) stays; what it puts behind (EOS)
    would have the model answer after the end of the text.
    """
    if not texts:
        return []
    prefix = _beginning(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False).input_ids
    return [row if row[: len(prefix)] == prefix else [*prefix, *row] for row in rows]


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before a text."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def encode(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Prompts as token ids: those of `render`, or of the text where it has not been rendered."""
    tokens = [list(problem.tokens) for problem in problems if problem.tokens is not None]
    if len(tokens) < len(problems):
        return _begun(tokenizer, [problem.prompt for problem in problems])
    return tokens


def fitting(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> list[Problem]:
    """The problems whose prompts are short enough.

    Raises:
        ConfigError: there are none.
    """
    from capo_ds.config import ConfigError

    lengths = map(len, encode(tokenizer, problems))
    kept = [p for p, length in zip(problems, lengths, strict=True) if length <= max_prompt_tokens]
    if not kept:
        raise ConfigError(
            f"rollout.max_prompt_tokens: {max_prompt_tokens} leaves none of {len(problems)} "
            "problems; raise it"
        )
    return kept


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    ends = [end for end in (text.find(string) for string in stop) if end >= 0]
    return text[: min(ends, default=len(text))]


def decode(
    tokenizer: PreTrainedTokenizerBase, rollout: Rollout, stop: Sequence[str] = ()
) -> list[str]:
    """Completions as text, without padding, special tokens, and what ended them."""
    return [text_before(tokenizer, ids, list(stop)) for ids in rollout.responses()]


def text_before(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: Sequence[str]) -> str:
    """Token ids as text without special tokens, up to the first stop string.

    A stop string with a special token in it is looked for where these still stand.
    """
    special = [token for token in tokenizer.all_special_tokens if token]
    whole = [string for string in stop if any(token in string for token in special)]
    (text,) = texts_of(tokenizer, [ids])
    if whole:
        (told,) = texts_of(tokenizer, [ids], special=True)
        if (shorter := cut(told, whole)) != told:
            text = re.sub("|".join(map(re.escape, special)), "", shorter)
    return cut(text, stop)
