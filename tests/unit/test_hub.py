"""Names of the hub, asked of a hub that is not there, and of one that says no."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from huggingface_hub import constants

from capo_ds import hub, merging
from capo_ds.adapters import fresh_adapter
from capo_ds.config import BUILTIN_MODELS, ConfigError, ModelConfig, parse_config
from capo_ds.evaluation_run import load_model
from capo_ds.weights import load_base_model, load_tokenizer
from tests.conftest import free_port
from tests.distributed.fake_hub import MODEL, places
from tests.distributed.fake_hub import hub as fake_hub

pytestmark = pytest.mark.usefixtures("process_group")


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        answers = {"gated": (403, "GatedRepo"), "typo": (401, "RepoNotFound"), "busy": (503, "")}
        word = next((word for word in answers if word in self.path), None)
        status, code = answers.get(word, (200, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(tmp_path, monkeypatch) -> Iterator[str]:
    """A hub's address; the cache is empty, and what is set is put back."""
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    use(address, tmp_path, monkeypatch)
    yield address
    server.shutdown()


def use(address: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(hub.OFFLINE, "0")
    monkeypatch.setattr(hub, "_found_offline", False)
    for module, name, value in places(address, str(tmp_path / "cache")):
        monkeypatch.setattr(module, name, value)


def config(model: str, **keys):
    return parse_config({"model": {"path": model}} | keys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/gated", "model.path: 'me/gated' is gated: accept its terms at http.*HF_TOKEN"),
        ("me/typo", "model.path: there is no model 'me/typo' at http.*check the spelling"),
        ("a/b/c", "model.path: 'a/b/c' is no folder or file here, and no name of the hub"),
    ],
)
def test_what_the_hub_does_not_give(endpoint, name, message):
    with pytest.raises(ConfigError, match=message):
        hub.check_hub(config(name))


@pytest.mark.parametrize("name", ["me/good", "me/busy"])
def test_what_is_there_is_left_to_the_libraries(endpoint, name):
    hub.check_hub(config(name))


def test_data_sets_are_asked_for_by_their_key(endpoint):
    with pytest.raises(ConfigError, match=r"evaluation.benchmarks.1.path: .*dataset 'me/typo'"):
        benchmarks = [{"name": "gsm8k"}, {"name": "math", "path": "me/typo"}]
        hub.check_hub(config("builtin:tiny", evaluation={"benchmarks": benchmarks}))


def test_every_set_of_a_mixture_is_asked_for(endpoint):
    mixture = [{"name": "gsm8k"}, {"name": "math", "path": "me/typo"}]
    with pytest.raises(ConfigError, match=r"task.mixture.1.path: .*dataset 'me/typo'"):
        hub.check_hub(config("builtin:tiny", task={"mixture": mixture}))


def test_no_network_is_told_once_and_the_cache_is_used(endpoint, monkeypatch, tmp_path, capsys):
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", nowhere)
    with pytest.raises(ConfigError, match=r"model.path: offline, and 'me/good' .*HF_HOME.*connect"):
        hub.check_hub(config("me/good"))
    with pytest.raises(ConfigError) as caught:  # a second time, offline by now
        hub.check_hub(config("me/good"))
    assert hub.OFFLINE not in str(caught.value)  # which nobody has set
    assert capsys.readouterr().err.count("offline: http://127.0.0.1") == 1
    (tmp_path / "cache" / "models--me--good" / "snapshots" / "abc").mkdir(parents=True)
    hub.check_hub(config("me/good"))  # offline by now: nothing is asked


@pytest.mark.parametrize("name", hub.ASKED_OFFLINE)
def test_who_asked_to_be_offline_is_told_so(endpoint, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=rf"model.path: offline, .* or unset {name}$"):
        hub.check_hub(config("me/good"))


def test_a_cache_that_cannot_be_written(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/cache")
    with pytest.raises(ConfigError, match="cache /proc/cache cannot be written; set HF_HOME"):
        hub.check_hub(config("me/good"))


def test_local_and_built_in_names_ask_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked"))
    hub.check_hub(config("builtin:tiny"))
    hub.check_hub(config(str(tmp_path), task={"name": "gsm8k", "path": str(tmp_path)}))


def test_an_adapter_that_is_nowhere(endpoint):
    for name, message in [("runs/x/adapter", "no folder or file here"), ("me/typo", "no model")]:
        with pytest.raises(ConfigError, match=f"evaluation.adapter: .*{message}"):
            evaluated(name)


def evaluated(adapter: str):
    """The model of an evaluation."""
    hub.fetch_place("evaluation.adapter", adapter)
    return load_model(
        parse_config({"model": {"path": "builtin:tiny"}, "evaluation": {"adapter": adapter}})
    )


@pytest.fixture
def unasked(monkeypatch, tmp_path):
    """A folder to stand in, and a hub that must not be asked."""
    monkeypatch.setattr(hub, "_ask", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("peft.PeftConfig.from_pretrained", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one" / "adapter").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "adapter" / "adapter_config.json").write_text("{}")


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runs/nothere", "no folder 'runs/nothere': runs is a folder here, without 'nothere'"),
        ("./runs/nothere", "'./runs/nothere'"),
        ("~/no/such/folder", "no folder '.*/no/such/folder'"),
        ("runs", "no PEFT adapter at 'runs': no adapter_config.json$"),
        ("runs/one", "no adapter_config.json; did you mean runs/one/adapter"),
    ],
)
def test_an_adapters_path_that_is_none_asks_nobody(name, told):
    with pytest.raises(ConfigError, match=f"^--adapter: .*{told}"):
        merging.base_of(name)
    with pytest.raises(ConfigError, match=f"^evaluation.adapter: .*{told}"):
        evaluated(name)


@pytest.mark.usefixtures("unasked")
def test_nor_does_that_of_a_run():
    with pytest.raises(ConfigError, match=r"^model.adapter: no folder 'runs/nothere'"):
        hub.check_hub(parse_config({"model": {"adapter": "runs/nothere"}}))


def test_a_merge_asks_once_for_names_of_the_hub(endpoint, tmp_path):
    with pytest.raises(ConfigError, match="--adapter: there is no model 'me/typo'"):
        merging.base_of("me/typo")
    with pytest.raises(ConfigError, match="--model: there is no model 'me/typo'"):
        merging.merge(ModelConfig(path="me/typo"), str(tmp_path), tmp_path / "merged")


def test_an_adapter_of_the_hub_is_asked_for_once_and_then_read_from_the_cache(
    tmp_path, monkeypatch
):
    base = ModelConfig(path="builtin:tiny", lora_rank=2)
    fresh_adapter(load_base_model(base), base, seed=0).save_pretrained(tmp_path / "adapter")
    with fake_hub(tmp_path / "adapter") as served:
        use(served.address, tmp_path, monkeypatch)
        assert merging.base_of(MODEL) == "builtin:tiny"
        merging.merge(base, MODEL, tmp_path / "merged")
    assert served.asked.pop(f"GET /api/models/{MODEL}/auth-check") == 1
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.rpartition("/")[2] for path in served.asked
    }
    assert set(served.asked.values()) == {1}, served.asked


def test_an_evaluation_takes_the_newest_adapter_of_the_hub(tmp_path, monkeypatch):
    base, place = ModelConfig(path="builtin:tiny", lora_rank=2), tmp_path / "adapter"
    with fake_hub(place) as served:
        use(served.address, tmp_path, monkeypatch)
        for seed, commit in enumerate(("a" * 40, "b" * 40)):
            served.commit = commit
            published = fresh_adapter(load_base_model(base), base, seed)
            published.save_pretrained(place)
            found = evaluated(MODEL).state_dict()
            for name, value in published.state_dict().items():
                assert torch.equal(found[name], value), name


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_is_asked_for_and_fetched_but_not_listed_besides(weights, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    for name in ("config.json", weights, "tf_model.h5"):
        (tmp_path / "there" / name).write_text(json.dumps({"name": name}))
    with fake_hub(tmp_path / "there") as served:
        use(served.address, tmp_path, monkeypatch)
        settings = config(MODEL)
        hub.check_hub(settings)
        hub._fetch(settings, "model.path", MODEL, "model", None)
        assert served.asked[f"GET /api/models/{MODEL}/auth-check"] == 1
        assert (
            served.asked[f"GET /api/models/{MODEL}/tree/main"] == 0
        )  # as list_repo_files would ask
        fetched = {
            path.rpartition("/")[2] for path in served.asked if f"GET /{MODEL}/resolve" in path
        }
    assert fetched == {"config.json", weights}


def test_what_has_been_fetched_is_read_without_a_question(tmp_path, monkeypatch):
    """As one folder, whole or not at all: of one that lacks something the loaders ask the hub."""
    with fake_hub(BUILTIN_MODELS["builtin:tiny"]) as served:
        use(served.address, tmp_path, monkeypatch)
        settings = config(MODEL)
        assert hub.whole_snapshot(MODEL, None) is None
        hub._fetch(settings, "model.path", MODEL, "model", None)
        asked = served.asked.copy()
        assert load_tokenizer(settings.model).eos_token
        base = load_base_model(settings.model)
        assert base.name_or_path == base.config.name_or_path == MODEL  # an adapter's card has it
        assert served.asked == asked
        folder = hub.whole_snapshot(MODEL, None)
        assert folder and hub.whole_snapshot(MODEL, "v2") is None
        for name in ("tokenizer*", "model.safetensors", "config.json"):
            moved = [(file, tmp_path / file.name) for file in folder.glob(name)]
            for file, away in moved:
                file.rename(away)
            assert hub.whole_snapshot(MODEL, None) is None
            for file, away in moved:
                away.rename(file)
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert hub.whole_snapshot(MODEL, None) is None
