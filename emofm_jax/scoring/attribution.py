"""Integrated gradients over the embeddings of the slots (Sundararajan et al., 2017).

    attribution_s = sum_d (e - e0)_sd * mean over a in [0, 1] of d logit / d e_sd at e0 + a (e - e0)

They say which slots made a logit. Their sum over the slots is logit(e) - logit(e0): completeness.
The mean is taken by Gauss-Legendre's two points in each segment of the path. What a segment's
logits at its ends and its attributions differ by is its gap. Where the gaps of a row add up to more
than the tolerance, the segments with the large ones (a ReLU that switches, say) are halved.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax.errors import UserError

_FIRST_SEGMENTS = 16  # of a row
_SMALLEST = 2.0**-15  # of a segment, as a share of the path: f32 tells its ends apart
_CHUNK = 256  # segments that are taken together
_POINTS = 0.5 + np.array([-0.5, 0.5]) / np.sqrt(3)  # of Gauss-Legendre in [0, 1], weight 1/2 each


class Measure(NamedTuple):
    """The functions of a model, with its parameters; each is compiled once per number of rows.

    Attributes:
      embed: features -> e f32[B, S, D], of an ensemble a tuple of these.
      logit: e -> f32[B].
      segment: (start, end, row i32[K], at f32[K], width f32[K]) -> parts f32[K, S], gaps f32[K], of
        K segments of the paths from e = start to e = end: which path, from where on, how long.
    """

    embed: Callable
    logit: Callable
    segment: Callable


def make_measure(embed: Callable, score: Callable, params: Any) -> Measure:
    """Builds the functions of `score(params, embed(params, features))`, without a calibration."""
    params = _uncalibrated(params)
    logit = lambda params, e: score(params, e)["logit"]
    compiled = (jax.jit(function) for function in (embed, logit, _make_segment(logit)))
    return Measure(*(functools.partial(function, params) for function in compiled))


def explain(
    measure: Measure, features: Mapping, reference: Mapping | None, tolerance: float
) -> dict[str, np.ndarray]:
    """Attributes the logit of each row to its slots.

    Of typed models the logit is the mixture's. A calibration is left out: isotonic regression has
    steps, which no gradient sees.

    Args:
      measure: of a run, or of an ensemble.
      features: of B rows.
      reference: features of B rows, or of one, to compare with; None: e = 0, which says nothing.
      tolerance: of completeness, in units of the logit.

    Returns:
      "attribution" f32[B, S] in the order of the schema's slots, "logit" and "reference_logit"
      f32[B], and "gap" f32[B], what completeness lacks. It exceeds `tolerance` only where the
      precision of the network (float32, bfloat16) does not resolve the path any finer.

    Raises:
      UserError: a reference of another number of rows, an exported scorer.
    """
    end = measure.embed(features)
    num_rows, num_slots, _ = jax.tree.leaves(end)[0].shape
    if reference is None:
        start = jax.tree.map(jnp.zeros_like, end)
    else:
        start = measure.embed(reference)
        if (given := len(jax.tree.leaves(start)[0])) not in (1, num_rows):
            rows = f"it has {given} rows, the features have {num_rows}"
            raise UserError(f"reference: {rows}; give 1 or {num_rows}")
        start = jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), start, end)

    parts, gap = np.zeros((num_rows, num_slots)), np.zeros(num_rows)
    if num_rows:
        take = functools.partial(_in_chunks, functools.partial(measure.segment, start, end))
        parts, gap = _refine(take, num_rows, tolerance)
    return {
        "attribution": parts.astype(np.float32),
        "logit": np.asarray(measure.logit(end)),
        "reference_logit": np.asarray(measure.logit(start)),
        "gap": gap.astype(np.float32),
    }


def _uncalibrated(params: Any) -> Any:
    if isinstance(params, tuple):
        return tuple(_uncalibrated(member) for member in params)
    return {name: x for name, x in params.items() if name != "calibration"}


def _refine(take: Callable, num_rows: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns attributions f64[B, S] and gaps f64[B]; `take(row, at, width)` measures segments."""
    row = np.repeat(np.arange(num_rows), _FIRST_SEGMENTS)
    width = np.full(len(row), 1 / _FIRST_SEGMENTS)
    at = np.tile(np.arange(_FIRST_SEGMENTS) / _FIRST_SEGMENTS, num_rows)
    parts, gaps = take(row, at, width)

    while True:
        gap, segments = np.bincount(row, gaps, num_rows), np.bincount(row)
        large = np.abs(gaps) * segments[row] > tolerance
        split = large & (np.abs(gap) > tolerance)[row] & (width > _SMALLEST)
        if not split.any():
            attribution = np.zeros((num_rows, parts.shape[1]))
            np.add.at(attribution, row, parts)
            return attribution, gap

        half, at_half = width[split] / 2, at[split] + width[split] / 2
        halves = np.tile(row[split], 2), np.append(at[split], at_half), np.tile(half, 2)
        pairs = zip((row, at, width, parts, gaps), (*halves, *take(*halves)))
        row, at, width, parts, gaps = (np.concatenate([old[~split], new]) for old, new in pairs)


def _in_chunks(segment: Callable, row, at, width) -> tuple[np.ndarray, np.ndarray]:
    """Measures segments in chunks of one shape, so that the program is compiled once."""
    segments, found = (row.astype(np.int32), at.astype(np.float32), width.astype(np.float32)), []
    for first in range(0, len(row), _CHUNK):
        # The last chunk is repeated up to the full size.
        chunk = (np.resize(x[first : first + _CHUNK], _CHUNK) for x in segments)
        found.append(segment(*chunk))

    parts, gaps = (np.concatenate(x)[: len(row)] for x in zip(*jax.device_get(found)))
    return parts.astype(np.float64), gaps.astype(np.float64)


def _make_segment(logit: Callable) -> Callable:
    """Makes `Measure.segment`, which takes the parameters first."""

    def segment(params, start, end, row, at, width):
        start, end = (jax.tree.map(lambda x: x[row], e) for e in (start, end))
        difference = jax.tree.map(jnp.subtract, end, start)
        place = lambda a: jax.tree.map(lambda s, d: s + a[:, None, None] * d, start, difference)
        gradient = jax.grad(lambda e: logit(params, e).sum())

        slopes = [gradient(place(at + point.astype(np.float32) * width)) for point in _POINTS]
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *slopes)
        parts = jax.tree.map(lambda g, d: (g * d).sum(axis=-1) * width[:, None], mean, difference)
        total: Any = sum(jax.tree.leaves(parts))  # of an ensemble: over its members

        rise = logit(params, place(at + width)) - logit(params, place(at))
        return total, rise - total.sum(axis=1)

    return segment
