"""What an aggregator is given of a step's samples: scaled gradients, sums of them, another average.

An aggregator sees program vectors h_k = sum over the samples i of task k of D_i g_i, and the centre
g_0 = sum_k v_k h_k. As every sample is in one task, all that enters follows from the samples' Gram
matrix Q (no pass, nothing stored, any sketch), and a coefficient c_k of h_k is one of
D_i c_k for each of its samples. Derivations: docs/mathematics.md, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from capo_ds.aggregation.problem import Aggregation, GramProblem

# No gradient is raised by more than this over the typical one: a sample whose norm is 1e-4 of the
# median is made of float32 rounding as much as of signal.
MOST_RAISED = 1e4


CHOICES = {
    "norms": ("none", "clip", "unit"),
    "norms_in": ("all", "program"),
    "tasks": ("sample", "group"),
    "average": ("mean", "geometric_median"),
}


@dataclass(frozen=True)
class Choices:
    """Settings of the section `program`, which say what each means; the defaults are the paper's.

    Attributes:
        norms: none, clip (at a quantile of the norms) or unit (times their median).
        norm_quantile: of clip, in (0, 1).
        norms_in: all (the program and g_0), or program (g_0 stays as it is).
        tasks: sample, or group (the positives of a prompt are one task, its negatives another).
        average: mean, or geometric_median of the prompts' own averages.

    Raises:
        ValueError: on a value that is none of these.
    """

    norms: str = "none"
    norm_quantile: float = 0.5
    norms_in: str = "all"
    tasks: str = "sample"
    average: str = "mean"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not 0 < self.norm_quantile < 1:
            raise ValueError(f"norm_quantile must be between 0 and 1, got {self.norm_quantile}")

    @property
    def as_published(self) -> bool:
        return self.norms == "none" and self.tasks == "sample" and self.average == "mean"


@dataclass(frozen=True)
class Given:
    """A program and how its answer becomes coefficients of the samples.

    problem: of K tasks. task: (N,) int, the task of each sample. scale: (N,) D.
    """

    problem: GramProblem
    task: np.ndarray
    scale: np.ndarray

    def of_samples(self, values: np.ndarray) -> np.ndarray:
        """(N,) coefficients of the samples from those of the tasks (K,)."""
        return self.scale * values[self.task]

    def answer(self, result: Aggregation) -> Aggregation:
        """The aggregation of the tasks as one of the samples."""
        parts = {name: getattr(result, name) for name in ("coefficients", "xi", "base", "average")}
        known = {name: self.of_samples(part) for name, part in parts.items() if part is not None}
        return replace(result, **known)


def given(problem: GramProblem, groups: np.ndarray, choices: Choices) -> Given:
    """What an aggregator is given of the samples.

    Args:
        problem: N samples as they are.
        groups: (N,) the prompt of each sample.
        choices: the settings.
    """
    count = problem.count
    if choices.as_published:
        return Given(problem, np.arange(count), np.ones(count))
    scale = norm_scale(problem, choices.norms, choices.norm_quantile)
    weights = problem.average * prompt_weights(problem, groups, scale, choices)
    scaled = replace(
        problem,
        gram=problem.gram * scale[:, None] * scale,
        average=weights if choices.norms_in == "all" else weights / scale,
    )
    if choices.tasks == "sample":
        return Given(scaled, np.arange(count), scale)
    return _group_sums(scaled, groups, scale, ~problem.dropped)


def norm_scale(problem: GramProblem, norms: str, quantile: float) -> np.ndarray:
    """(N,) D > 0 of the gradients D_i g_i that the program is made of.

    Samples without an advantage keep their gradient, which is the KL term's alone: a unit of it
    would be louder than any response. Zero gradients stay zero.
    """
    voices = (problem.positive | problem.negative) & (problem.norms > 0.0)
    scale = np.ones(problem.count)
    if norms == "none" or not voices.any():
        return scale
    lengths = problem.norms[voices]
    if norms == "clip":
        scale[voices] = np.minimum(1.0, np.quantile(lengths, quantile) / lengths)
    else:
        scale[voices] = np.minimum(np.median(lengths) / lengths, MOST_RAISED)
    return scale


def prompt_weights(
    problem: GramProblem, groups: np.ndarray, scale: np.ndarray, choices: Choices
) -> np.ndarray:
    """(N,) factors of the weights in g_0, one for all samples of a prompt, that sum to N over it.

    geometric_median: Weiszfeld's iteration for argmin_x sum_p ||m_p - x||, where m_p is the average
    of prompt p; x stays a convex combination of the m_p, so it needs their Gram matrix alone.
    """
    if choices.average == "mean":
        return np.ones(problem.count)
    if choices.norms_in == "program":
        scale = np.ones(problem.count)
    names, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), problem.count))
    sums[place, np.arange(problem.count)] = problem.average * scale
    shares = geometric_median(sums @ problem.gram @ sums.T)
    return len(names) * shares[place]


def geometric_median(gram: np.ndarray, iterations: int = 200) -> np.ndarray:
    """(P,) weights a >= 0, sum 1, of the geometric median sum_p a_p m_p of P vectors.

    gram: (P, P) of the vectors. Vectors of zero length are prompts without a gradient, which have
    no say: weight 0 (and 1/P each if all are). Weiszfeld (1937), to a relative change of 1e-10.
    """
    count = len(gram)
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    heard = lengths > 0.0
    weights = np.full(count, 1.0 / count)
    if not heard.any():
        return weights
    weights = heard / heard.sum()
    floor = 1e-12 * lengths.max()  # of a distance: the median may be one of the vectors
    for _ in range(iterations):
        squares = np.diag(gram) - 2 * gram @ weights + weights @ gram @ weights
        pull = heard / np.maximum(np.sqrt(np.maximum(squares, 0.0)), floor)
        last, weights = weights, pull / pull.sum()
        if np.abs(weights - last).max() < 1e-10:
            break
    return weights


def _group_sums(
    scaled: GramProblem, groups: np.ndarray, scale: np.ndarray, kept: np.ndarray
) -> Given:
    """Tasks that are the sums over a prompt's positives, negatives and other samples."""
    kind = scaled.positive.astype(int) - scaled.negative  # 1, -1, 0
    keys, task = np.unique(np.stack([groups, kind]), axis=1, return_inverse=True)
    task = task.reshape(-1)
    members = np.zeros((keys.shape[1], scaled.count))
    members[task[kept], np.flatnonzero(kept)] = 1.0
    # All samples of a prompt weigh the same in g_0; one that was dropped weighs nothing.
    average = np.zeros(len(members))
    np.maximum.at(average, task, scaled.average)
    problem = GramProblem(
        gram=members @ scaled.gram @ members.T,
        positive=keys[1] == 1,
        negative=keys[1] == -1,
        average=average,
    )
    return Given(problem, task, np.where(kept, scale, 0.0))
