"""A model of the hub on two ranks that start at once on one empty cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from capo_ds.config import BUILTIN_MODELS
from tests.conftest import REPOSITORY, launch
from tests.distributed.fake_hub import MODEL, Hub, hub

SCRIPT = Path(__file__).with_name("hub_train.py")
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"
AUTHORISED = f"GET /api/models/{MODEL}/auth-check"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def the_hub() -> Iterator[Hub]:
    with hub(BUILTIN_MODELS["builtin:tiny"]) as one, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield one


def dry_run(hub: Hub, folder: Path, status: int):
    """Loads all that a run would, on two ranks."""
    settings = {"model.path": MODEL, "train.output_dir": folder / "run", "task.test_problems": 4}
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    place = (hub.address, str(folder / "cache"))
    return launch(2, SCRIPT, *place, "--config", str(RECIPE), "--dry-run", *words, status=status)


def test_what_cannot_be_fetched_ends_all_ranks_with_one_error(the_hub, folder):
    the_hub.broken = "model.safetensors"
    result = dry_run(the_hub, folder, 2)
    assert result.stderr.count(f"model.path: '{MODEL}' cannot be fetched from the hub: ") == 1
    assert "model.safetensors" in result.stderr
    assert the_hub.asked[AUTHORISED] == 1


def test_one_rank_fetches_for_all(the_hub, folder):
    """What the test before has left in the cache is not fetched again."""
    before = the_hub.asked.copy()
    the_hub.broken = ""
    result = dry_run(the_hub, folder, 0)
    assert MODEL in result.stdout
    assert (the_hub.asked - before)[AUTHORISED] == 1
    fetched = {p: count for p, count in the_hub.asked.items() if p.startswith("GET /me/tiny/")}
    weights = next(path for path in fetched if path.endswith("/model.safetensors"))
    assert fetched.pop(weights) == 1 + before[weights]
    assert set(fetched.values()) == {1}, fetched
