import pytest

from capo_ds.tasks import Judge


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge(time_limit=5.0, workers=1)
