r"""From a problem's text to the prompt that a model reads.

The template belongs to the model's family: a base model continues a text, an instruction-tuned one
answers in its chat template. All ask for the format that `rewards` checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capo_ds.tasks.base import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from capo_ds.config import PromptConfig

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


def render(
    problems: Sequence[Problem], config: PromptConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Problem]:
    """The problems with their prompts as the model reads them.

    Raises:
        ConfigError: the template is `chat` and the tokenizer has no chat template.
    """
    from capo_ds.config import ConfigError

    if config.template == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            "prompt.template: chat, but the model's tokenizer has no chat template; use base"
        )
    template = TEMPLATES.get(config.template, Template(config.template, REASON_AND_BOX))
    instruction = template.instruction if config.instruction is None else config.instruction
    # The instruction first: a problem's text may hold braces of any kind.
    text = template.text.replace("{instruction}", instruction)
    prompts = [text.replace("{problem}", problem.prompt) for problem in problems]
    if config.template == "chat":
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    return [
        replace(problem, prompt=prompt) for problem, prompt in zip(problems, prompts, strict=True)
    ]


def encode(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    """Prompts as token ids, begun as the tokenizer begins a text, but never twice.

    A chat template writes the beginning-of-sequence token itself.
    """
    texts = [problem.prompt for problem in problems]
    if not texts:
        return []
    begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    return tokenizer(texts, add_special_tokens=not begun).input_ids


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
