"""A process that answers as vLLM's server behind our door does, with made-up tokens: a response
depends on prompt, seed and adapter alone. python tests/stand_in_server.py PORT SECONDS
"""

import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

loaded: dict[str, str] = {}  # name: digest
asked = 0


def completion(request: dict, number: int) -> dict:
    words = json.dumps([request["prompt"], request["seed"], number, loaded[request["model"]]])
    digest = hashlib.sha256(words.encode()).digest()
    tokens = [3 + byte % 8 for byte in digest[: request["max_tokens"]]]
    return {
        "index": number,
        "token_ids": tokens,
        "logprobs": {"token_logprobs": [-byte / 64 for byte in digest[: len(tokens)]]},
        "finish_reason": "length",
    }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/asked":
            return self._answer({"asked": asked})
        base = {"id": "base", "parent": None, "max_model_len": 4096}
        adapters = [{"id": name, "parent": "base"} for name in loaded]
        self._answer({"data": [base, *adapters]})

    def do_PUT(self):
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        name, digest = self.path.rpartition("/")[2], hashlib.sha256(self.body).hexdigest()
        self._answer({"path": f"{name}:{digest}", "digest": digest})

    def do_DELETE(self):
        self._answer({})

    def do_POST(self):
        global asked
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/load_lora_adapter":
            loaded[request["lora_name"]] = request["lora_path"].rpartition(":")[2]
            return self._answer({})
        if self.path == "/v1/unload_lora_adapter":
            del loaded[request["lora_name"]]
            return self._answer({})
        asked += 1
        if request["model"] not in loaded:
            return self._answer({"error": f"no {request['model']}"}, 404)
        time.sleep(SECONDS)
        choices = [completion(request, number) for number in reversed(range(request["n"]))]
        self._answer({"model": request["model"], "choices": choices})

    def _answer(self, body: dict, status: int = 200):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    port, SECONDS = int(sys.argv[1]), float(sys.argv[2])
    Server(("127.0.0.1", port), Handler).serve_forever()
