"""Make the untrained tiny model: a tokenizer trained on the arithmetic task, and a Qwen2 config.

The folder has no weights; `launchers/warmup.py` starts such a folder from random ones.
"""

import argparse
from pathlib import Path
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from capo_ds.tasks import arithmetic
from capo_ds.tasks.demonstrations import STYLES
from capo_ds.tasks.prompts import TEMPLATES

VOCABULARY = 512
CONTEXT = 256  # tokens
END, PAD = "<|endoftext|>", "<|pad|>"
# Qwen2's own: words with their leading space or sign, digits one by one, runs of signs, line
# breaks. The same on purpose, as is the NFC normalisation: loading through AutoTokenizer turns
# this into a Qwen2Tokenizer, which puts in its own.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(problems: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the task's texts; any NFC text goes through it and back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = arithmetic.generate("train", problems, sorted(arithmetic.LEVELS), seed)
    prompt = TEMPLATES["plain"].text.replace("{instruction}", TEMPLATES["plain"].instruction)
    texts = [
        prompt.replace("{problem}", problem.prompt) + tell(problem)
        for problem in corpus
        for tell in STYLES.values()
    ]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        bos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where tokenizer and config are written")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(arguments.folder)
    model_config(tokenizer, arguments.hidden, arguments.layers).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
