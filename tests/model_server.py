"""A stand-in for a vLLM server that samples from the embedded model, with the adapters that it is
given: python -m tests.model_server PORT SECONDS [KEY=VALUE...], where every answer takes so long at
least; settings as of --set.
"""

import json
import sys
import threading
import time
from typing import ClassVar

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load

from capo_ds.config import load_config
from capo_ds.models import load_policy, load_tokenizer
from capo_ds.rollout.base import Draw, end_tokens, pad_token
from capo_ds.rollout.hf import HuggingFaceSampler
from tests import stand_in_server
from tests.stand_in_server import Server

LOCK = threading.Lock()


class Handler(stand_in_server.Handler):
    adapters: ClassVar[dict[str, dict[str, torch.Tensor]]] = {}

    def do_PUT(self):
        super().do_PUT()
        self.adapters[self.path.rpartition("/")[2]] = load(self.body)

    def do_POST(self):
        if self.path != "/v1/completions":
            return super().do_POST()
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["model"] not in stand_in_server.loaded:
            return self._answer({"error": f"no {request['model']}"}, 404)
        time.sleep(SECONDS)
        with LOCK:
            set_peft_model_state_dict(POLICY, self.adapters[request["model"]])
            self._answer({"model": request["model"], "choices": completions(request)})


def completions(request: dict) -> list[dict]:
    rollout = SAMPLER.sample(
        [request["prompt"]],
        [Draw(request["seed"], 0, 0)],
        request["n"],
        request["temperature"],
        request["max_tokens"],
    )
    parts = rollout.responses(), rollout.log_probs.tolist(), rollout.truncated.tolist()
    return [
        {
            "index": number,
            "token_ids": ids,
            "logprobs": {"token_logprobs": log_probs[: len(ids)]},
            "finish_reason": "length" if truncated else "stop",
        }
        for number, (ids, log_probs, truncated) in enumerate(zip(*parts, strict=True))
    ]


if __name__ == "__main__":
    port, SECONDS = int(sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(1)
    CONFIG = load_config("builtin:quickstart", sys.argv[3:])
    POLICY = load_policy(CONFIG.model, seed=0)
    TOKENIZER = load_tokenizer(CONFIG.model)
    PAD = pad_token(TOKENIZER)
    SAMPLER = HuggingFaceSampler(POLICY, end_tokens(POLICY, TOKENIZER), PAD, 48, 64)
    Server(("127.0.0.1", port), Handler).serve_forever()
