"""The answers that the benchmarks publish, from their files if at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

from judged.forms import Answer
from judged.quantities import integer_forms

FILES = {
    "GSM8K": ("gsm8k_test.jsonl", "gsm8k_train.jsonl"),
    "AMC": ("amc23.jsonl",),
    "AIME": ("aime24.jsonl",),
}


def answers(count: int, rng: Random, folder: Path) -> list[Answer]:
    """Of each data set whose file is there at most `count` distinct answers, with forms."""
    found = []
    for family, names in FILES.items():
        texts = {text for name in names for text in _references(folder / name)}
        for text in rng.sample(sorted(texts), min(count, len(texts))):
            number = float(text.replace(",", ""))
            if number and number.is_integer():
                found.append(integer_forms(Answer(family, text), int(number), rng))
    return found


def _references(path: Path) -> list[str]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [str(row["answer"]).rpartition("####")[2].strip() for row in rows]
    return [text for text in texts if re.fullmatch(r"-?[\d,]+(\.\d+)?", text)]
