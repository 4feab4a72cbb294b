r"""What may stand around the box, and what not."""

import time

import pytest

from capo_ds.tasks.format import final_answer


@pytest.mark.parametrize(
    "completion",
    [
        r"**\boxed{16}**",
        r"***\boxed{16}.***",
        r"__\boxed{16}__",
        r"`\boxed{16}`",
        "```\n\\boxed{16}\n```\n",
        r"\begin{align*}x&=\boxed{16}\end{align*}",
        "\\begin{equation}\n\\boxed{16}.\n\\end{equation}\n",
        r"\[\boxed{16}\,\]",
        r"$\boxed{16}\;$",
        r"\boxed{16}\quad",
        r"\boxed{16}\ ",
        r"\boxed{16}\\",
        r"$$\boxed{16}$$.",
        r"\boxed{16}.",
        r"\boxed{16}!",
        "\\boxed{16}\N{IDEOGRAPHIC FULL STOP}",
        r"(so \boxed{16}.)",
        'He said: "it is \\boxed{16}."',
        r"<answer>\boxed{16}</answer>",
        r"<think>12+4</think><answer>$\boxed{16}$</answer></b><br>",
        r"\textbf{\boxed{16}}",
        r"$\displaystyle{\mathbf{\boxed{16}}}$.",
        r"\boxed{16} $\blacksquare$",
        r"\boxed{16} \qed",
    ],
)
def test_closing_markup_and_punctuation_are_noise(completion):
    assert final_answer(completion) == "16"


@pytest.mark.parametrize(
    "completion",
    [
        r"$\boxed{16}$ dollars",
        r"\boxed{16} apples.",
        r"\boxed{16}\text{ cm}",
        r"\boxed{16}^\circ",
        r"\boxed{16}\%",
        r"\boxed{16}%",
        r"\boxed{16}^2",
        r"\boxed{16}?",
        r"\boxed{16} or 17",
        r"\boxed{16}**17**",
        r"\boxed{16}<answer>",
        r"\boxed{16}\begin{align*}",
        r"\boxed{16}\end{align*} 17",
        r"\boxed{16}}",
        r"\{\boxed{16}}",
        r"{x}\boxed{16}}",
        r"\textbf{\boxed{16}}}",
        r"\boxed{16}\quadruple",
        r"\boxed{16} + 1",
        r"\boxed{16} = x",
        r"\boxed{16}</answer>17",
        "\\boxed{16}\n\nHuman: and now?",
    ],
)
def test_what_says_more_is_not(completion):
    assert final_answer(completion) is None


@pytest.mark.parametrize("tail", ["\n" * 1_000_000, "}" * 500_000, "**" * 500_000 + "x"])
def test_long_tails_take_linear_time(tail):
    start = time.process_time()
    final_answer(r"\boxed{16}" + tail)
    assert time.process_time() - start < 10
