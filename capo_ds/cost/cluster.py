"""The rates of a cluster that a forecast needs, from a YAML file or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from capo_ds.config import ConfigError, expand
from capo_ds.config.section import Number, Section
from capo_ds.config.text import decode, parse_yaml

Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]


class Link(Section):
    """alpha and beta.

    seconds: that a message without content takes, one way. bytes_per_second: of one rank to a
    neighbour, while it receives as many; between machines of all adapters of a machine together.
    """

    seconds: Annotated[Number, Field(ge=0)]
    bytes_per_second: Positive


class Rates(Section):
    """What one rank achieves, not what its data sheet says.

    passes: floating-point operations a second of the model's passes in training. products: of the
    Gram matrix, in the stored gradients' precision. memory: bytes a second of weighted sums over
    stored gradients. sampling: bytes a second of weights (and half of the keys and values) read
    while responses are sampled. optimizer: seconds a step that do not depend on the ranks.
    solve: seconds of rank 0 by number of samples.
    """

    passes: Positive
    products: Positive
    memory: Positive
    sampling: Positive
    optimizer: Annotated[Number, Field(ge=0)]
    solve: dict[Count, Positive] = Field(min_length=1)

    def solve_seconds(self, samples: int) -> float:
        """At N samples: a N^2 + b N^3 through the smallest and the largest N that are known."""
        first, last = min(self.solve), max(self.solve)
        cubic = 0.0
        if last > first:
            cubic = self.solve[last] / last**2 - self.solve[first] / first**2
            cubic = max(0.0, cubic / (last - first))
        square = max(0.0, self.solve[first] / first**2 - cubic * first)
        return square * samples**2 + cubic * samples**3


class Cluster(Section):
    """Machines that are alike.

    backend: whose algorithms the collectives follow. ranks: of a machine. within, between: the
    links of a machine's ranks, and of machines. memory, host_memory: bytes of a rank.
    """

    backend: Literal["nccl", "gloo"]
    ranks: Count
    within: Link
    between: Link
    rates: Rates
    memory: Positive
    host_memory: Positive

    def text(self) -> str:
        """As YAML."""
        found = self.model_dump()
        return yaml.safe_dump(_short(found), sort_keys=False)


def load_cluster(path: str) -> Cluster:
    """Read one.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    name = f"--cluster {path}"
    try:
        content = Path(expand(path)).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name}: {error.strerror}; launchers/cluster/ has examples, and --dry-run --nodes 1 "
            "prints what it measures as such a file"
        ) from error
    settings = parse_yaml(decode(content, path), path)
    try:
        return Cluster.model_validate(settings)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg'].lower()}, "
            f"got {problem['input']!r}"
            for problem in error.errors()
        ]
        raise ConfigError(
            "\n".join(f"{name}: {line}" for line in told)
            + "\nwrite it as in launchers/cluster/a800.yaml"
        ) from error


def _short(value: object) -> object:
    """Numbers in three digits."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
