"""Token ids as the text that the model wrote: for verdicts and for stop strings alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AS_IT_STANDS = {"clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False}


def texts_of(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], special: bool = False
) -> list[str]:
    """Each row as text, letter by letter: some tokenizers would tidy it up (`15 .` to `15.`).

    special: whether special tokens stand in it.
    """
    return [
        str(tokenizer.decode(ids, skip_special_tokens=not special, **AS_IT_STANDS)) for ids in rows
    ]
