"""The rates of a cluster that a forecast needs, from a YAML file or measured."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from capo_ds.config import HOME, ConfigError, expand
from capo_ds.config.reading import BUILTIN, shipped
from capo_ds.config.section import Number, Section
from capo_ds.config.text import decode, parse_yaml
from capo_ds.parts import nearest

Positive = Annotated[Number, Field(gt=0)]
BEYOND = 2.4  # the power of N that a solve's time grows by at most (docs/scaling.md)
CLUSTERS = HOME / "launchers" / "cluster"
EXAMPLES = "builtin:h100 and builtin:a800"
SHOWN = 40  # letters of a value that is no section
Count = Annotated[int, Field(ge=1, strict=True)]


class Link(Section):
    """alpha and beta.

    seconds: that two ranks take to exchange messages without content. bytes_per_second: of one
    rank to a neighbour, while it receives as many; between machines of all adapters of a machine.
    """

    seconds: Annotated[Number, Field(ge=0)]
    bytes_per_second: Positive


class Sketching(Section):
    """Of one sketch; of dense ones (`rademacher`) with sketch_dim 8192, and others in proportion.

    applied: bytes of gradients a second. drawn: of one sample's gradient a second, for the map that
    is made once for all samples which are sketched together; None: is in `applied`.
    """

    applied: Positive
    drawn: Positive | None = None


class Rates(Section):
    """What one rank achieves, not what its data sheet says.

    passes: floating-point operations a second of the model's passes in training. per_sample:
    seconds of those that give every sample its gradient, over those of others. products: of the
    Gram matrix, in the stored gradients' precision. memory: bytes a second of weighted sums over
    stored gradients. sketch: by name. sampling: bytes a second of weights (and half of the keys and
    values) read while responses are sampled.
    optimizer: seconds a step for each LoRA factor, which do not depend on the ranks. solve: seconds
    of rank 0 by number of samples.
    """

    passes: Positive
    per_sample: Positive = 1.0
    products: Positive
    memory: Positive
    sketch: dict[str, Sketching] = Field(default_factory=dict)
    sampling: Positive
    optimizer: Annotated[Number, Field(ge=0)]
    solve: dict[Count, Positive] = Field(min_length=1)

    def solve_seconds(self, samples: int) -> float:
        """At N samples: a power law from each known N to the next, `BEYOND` after the last."""
        known = sorted(self.solve)
        if samples <= known[0]:
            return self.solve[known[0]] * samples / known[0]
        for first, last in pairwise(known):
            if samples <= last:
                power = math.log(self.solve[last] / self.solve[first]) / math.log(last / first)
                return self.solve[first] * (samples / first) ** power
        return self.solve[known[-1]] * (samples / known[-1]) ** BEYOND


class Cluster(Section):
    """Machines that are alike.

    backend: whose algorithms the collectives follow. ranks: of a machine. within, between: the
    links of a machine's ranks, and of machines (None: not known). all_to_all: the share of the
    links' rate that is left where all ranks exchange with all. memory, host_memory: bytes of a
    rank.
    """

    backend: Literal["nccl", "gloo"]
    ranks: Count
    within: Link | None = None
    between: Link | None = None
    all_to_all: Annotated[Number, Field(gt=0, le=1)] = 1.0
    rates: Rates
    memory: Positive
    host_memory: Positive

    def check(self, machines: int, sketch: str) -> None:
        """Whether the links of so many and the sketch are known. Raises `ConfigError`."""
        missing = ["within"] * (self.ranks > 1 and self.within is None)
        missing += ["between"] * (machines > 1 and self.between is None)
        if missing:
            raise ConfigError(
                f"--nodes {machines}: the cluster's rates hold no link {' and '.join(missing)} "
                f"(ranks: {self.ranks}); add it, as {EXAMPLES} have it ({CLUSTERS}), or measure "
                "on two machines"
            )
        if sketch not in {"none", *self.rates.sketch}:
            raise ConfigError(
                f"gradients.sketch: the cluster's rates.sketch holds no {sketch!r}; add it as "
                f"{EXAMPLES} have others ({CLUSTERS}); `--dry-run --nodes 1` measures it"
            )

    def text(self) -> str:
        """As YAML."""
        found = self.model_dump(exclude_none=True)
        return yaml.safe_dump(_short(found), sort_keys=False)


def load_cluster(path: str) -> Cluster:
    """Read one.

    path: of the file, or `builtin:NAME` for one that ships.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    name = f"--cluster {path}"
    if path.startswith(BUILTIN):
        path = str(shipped("--cluster", "cluster", CLUSTERS, path.removeprefix(BUILTIN)))
    try:
        content = Path(expand(path)).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name}: {error.strerror}; {EXAMPLES} ship, and --dry-run --nodes 1 "
            "prints what it measures as such a file"
        ) from error
    settings = parse_yaml(decode(content, path), path)
    try:
        return Cluster.model_validate(settings)
    except ValidationError as error:
        lines = "\n".join(f"{name}: {line}" for line in _told(error, settings))
        example = f"{EXAMPLES} are such files, in {CLUSTERS}"
        raise ConfigError(f"{lines}\n{example}") from error


def _told(error: ValidationError, settings: object) -> list[str]:
    """A line for each problem; a key that is written wrongly is missing too, and told once."""
    problems, lines, meant = error.errors(), [], set()
    missing = [problem["loc"] for problem in problems if problem["type"] == "missing"]
    for problem in problems:
        place, told = problem["loc"], f"{problem['msg'].lower()}, got {problem['input']!r}"
        if problem["type"] == "missing":
            continue
        if problem["type"] in ("model_type", "dict_type"):
            told = f"keys and values belong here, as `ranks: 8`; found {_shortly(problem['input'])}"
        if problem["type"] == "extra_forbidden":
            word = nearest(str(place[-1]), _absent(place[:-1], settings))
            meant.add((*place[:-1], word))
            told = f"no such key; did you mean {word}?" if word else "no such key; remove it"
        lines.append(f"{'.'.join(map(str, place)) or 'the file'}: {told}")
    return lines + [
        f"{'.'.join(map(str, place))}: is missing" for place in missing if place not in meant
    ]


def _absent(place: tuple[int | str, ...], settings: object) -> list[str]:
    """The keys of the section there that the settings lack."""
    given = settings
    for part in place:
        given = given[part] if isinstance(given, dict) else None
    sections = {(): Cluster, ("within",): Link, ("between",): Link, ("rates",): Rates}
    section = sections.get(place, Sketching)
    return [key for key in section.model_fields if isinstance(given, dict) and key not in given]


def _shortly(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _short(value: object) -> object:
    """Numbers in three digits."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
