"""A hub in this process with one model, counting what is asked of it."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL, COMMIT = "me/tiny", "c0ffee" + 34 * "0"


@dataclass
class Hub:
    """asked: how often for what. broken: the file that it has and does not give. commit: its
    newest."""

    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    broken: str = ""
    commit: str = COMMIT


def places(address: str, cache: str) -> list[tuple[Any, str, Any]]:
    """Module, name and value of what the Hugging Face libraries have read from their variables,
    for this hub and this cache."""
    import datasets
    from huggingface_hub import constants, hf_api

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    return [
        (constants, "ENDPOINT", address),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        (constants, "HF_HUB_CACHE", cache),
        (constants, "HF_HUB_OFFLINE", False),
        (hf_api.api, "endpoint", address),
        (datasets.config, "HF_HUB_OFFLINE", False),
        (datasets.config, "HF_DATASETS_OFFLINE", False),
    ]


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """A hub whose model is in the folder."""
    hub = Hub()

    def names() -> list[str]:
        """Of its files, and of one that no trainer fetches, as every repository has."""
        return [*(file.name for file in folder.iterdir()), ".gitattributes"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.partition("?")[0]
            hub.asked[f"{self.command} {path}"] += 1
            name = path.rpartition("/")[2]
            if path.startswith(f"/{MODEL}/resolve/") and (folder / name).is_file():
                self.file(folder / name)
            elif path == f"/api/models/{MODEL}/auth-check":
                self.answer({})
            elif path in (f"/api/models/{MODEL}", f"/api/models/{MODEL}/revision/main"):
                files = [{"rfilename": name} for name in names()]
                self.answer({"id": MODEL, "sha": hub.commit, "siblings": files})
            elif path in (
                f"/api/models/{MODEL}/tree/main",
                f"/api/models/{MODEL}/tree/{hub.commit}",
            ):
                files = [{"type": "file", "path": name, "oid": "0"} for name in names()]
                self.answer([file | {"size": 1} for file in files])
            else:
                self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def file(self, file: Path):
            data = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": hub.commit}
            if file.name == hub.broken and self.command == "GET":
                self.answer({"error": "broken"}, 403)
            else:
                self.reply(200, data, headers)

        def answer(self, body: dict | list, status: int = 200, headers: dict | None = None):
            self.reply(status, json.dumps(body).encode(), headers or {})

        def reply(self, status: int, data: bytes, headers: dict[str, str]):
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
    finally:
        server.shutdown()
        server.server_close()
