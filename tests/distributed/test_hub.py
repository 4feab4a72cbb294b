"""A model of the hub on two ranks that start at once on one empty cache."""

from capo_ds.config import BUILTIN_MODELS
from tests.conftest import REPOSITORY, launch
from tests.distributed.fake_hub import MODEL, hub

TRAIN = REPOSITORY / "launchers" / "train.py"
RECIPE = REPOSITORY / "launchers" / "recipes" / "capo-embedded.yaml"


def dry_run(folder, monkeypatch, address: str, status: int):
    """Loads all that a run would, on two ranks; not forked: the library reads its variables at
    import."""
    for name, value in {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    settings = {"model.path": MODEL, "train.output_dir": folder / "run", "task.test_problems": 4}
    words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    words = ["--config", str(RECIPE), "--dry-run", *words]
    return launch(2, TRAIN, *words, launcher="torchrun", status=status)


def test_one_rank_fetches_for_all(tmp_path, monkeypatch):
    with hub(BUILTIN_MODELS["builtin:tiny"]) as (address, asked):
        result = dry_run(tmp_path, monkeypatch, address, 0)
    assert f"model.path: {MODEL}" in result.stdout or MODEL in result.stdout
    assert asked[f"GET /api/models/{MODEL}/auth-check"] == 1
    fetched = {path: count for path, count in asked.items() if path.startswith("GET /me/tiny/")}
    assert any(path.endswith("/model.safetensors") for path in fetched)
    assert set(fetched.values()) == {1}, fetched


def test_what_cannot_be_fetched_ends_all_ranks_with_one_error(tmp_path, monkeypatch):
    with hub(BUILTIN_MODELS["builtin:tiny"], broken="model.safetensors") as (address, asked):
        result = dry_run(tmp_path, monkeypatch, address, 1)
    assert result.stderr.count(f"model.path: '{MODEL}' cannot be fetched from the hub: ") == 1
    assert "model.safetensors" in result.stderr
    assert asked[f"GET /api/models/{MODEL}/auth-check"] == 1
