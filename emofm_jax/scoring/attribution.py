"""Integrated gradients over the embeddings of the slots (Sundararajan et al., 2017): which slots made this logit.

    attribution_s = sum_d (e - e0)_sd * integral over a in [0, 1] of d logit / d e_sd at e0 + a (e - e0)

The sum over the slots is logit(e) - logit(e0): completeness. The integral is taken by Gauss-Legendre's two points in
each segment of the path. What a segment's logits at its ends and its attributions differ by is its gap; where the gaps
of a row add up to more than the tolerance, the segments with the large ones (a ReLU that switches, say) are halved.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emofm_jax.errors import UserError

if TYPE_CHECKING:
    from emofm_jax.scoring.scorer import Scorer

_FIRST_SEGMENTS = 16  # of a row
_SMALLEST = 2.0**-15  # of a segment, as a share of the path: f32 tells its ends apart
_CHUNK = 256  # segments that are taken together
_POINTS = 0.5 + np.array([-0.5, 0.5]) / np.sqrt(
    3
)  # of Gauss-Legendre in [0, 1], of weight 1/2 each


class Measure(NamedTuple):
    """The programs of one scorer: embed(features) -> e, logit(e), and segment(start, end, row, at, width), below."""

    embed: Callable
    logit: Callable
    segment: Callable


def make_measure(scorer: "Scorer") -> Measure:
    """Builds the programs; each is compiled once for every number of rows."""
    params = _uncalibrated(scorer.params)
    embed, segment = jax.jit(scorer.embed), jax.jit(_make_segment(scorer.fn_from_embeddings))
    logit = jax.jit(lambda params, e: scorer.fn_from_embeddings(params, e)["logit"])
    return Measure(*(functools.partial(program, params) for program in (embed, logit, segment)))


def explain(
    scorer: "Scorer",
    measure: Measure,
    features: Mapping,
    reference: Mapping | None = None,
    *,
    tolerance: float = 1e-3,
) -> dict[str, np.ndarray]:
    """Attributes the logit of each row to its slots.

    Args:
      scorer: of a run, or of an ensemble of runs. Of typed models the logit is the mixture's; a calibration is left
        out, since isotonic regression has steps, which no gradient sees.
      measure: of the scorer.
      features: of B rows.
      reference: features of B rows, or of one, to compare with; None: e = 0, where no slot says anything.
      tolerance: of completeness, in units of the logit.

    Returns:
      "attribution" f32[B, S] in the order of the schema's slots, "logit" and "reference_logit" f32[B], and "gap"
      f32[B], what is left of logit - reference_logit - the sum of the attributions. It exceeds `tolerance` only where
      the precision of the network (float32, bfloat16) does not resolve the path any finer.

    Raises:
      UserError: features or a reference that do not fit, an exported scorer.
    """
    num_rows = len(scorer(features)["logit"])  # checks them
    end = measure.embed(features)
    if reference is None:
        start = jax.tree.map(jnp.zeros_like, end)
    else:
        if (given := len(scorer(reference)["logit"])) not in (1, num_rows):
            raise UserError(
                f"reference: it has {given} rows, the features have {num_rows}; give 1 or {num_rows}"
            )
        start = jax.tree.map(
            lambda x, like: jnp.broadcast_to(x, like.shape), measure.embed(reference), end
        )
    ends = [np.asarray(measure.logit(e)) for e in (start, end)]
    all_of = functools.partial(_measure_all, measure.segment, start, end)
    attribution, gap = _refine(all_of, num_rows, tolerance)
    return {
        "attribution": attribution.reshape(num_rows, scorer.schema.num_slots).astype(np.float32),
        "logit": ends[1],
        "reference_logit": ends[0],
        "gap": gap.astype(np.float32),
    }


def _uncalibrated(params):
    """The parameters of a run, or of each member of an ensemble, without the calibration."""
    if isinstance(params, tuple):
        return tuple(_uncalibrated(member) for member in params)
    return {name: x for name, x in params.items() if name != "calibration"}


def _refine(measure: Callable, num_rows: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """(f64[B, S], f64[B]): attributions and gaps; `measure(row, at, width)` takes segments and returns theirs."""
    row = np.repeat(np.arange(num_rows), _FIRST_SEGMENTS)
    width = np.full(len(row), 1 / _FIRST_SEGMENTS)
    at = np.tile(np.arange(_FIRST_SEGMENTS) / _FIRST_SEGMENTS, num_rows)
    if not num_rows:
        return np.zeros(0), np.zeros(0)
    parts, gaps = measure(row, at, width)
    while True:
        gap = np.bincount(row, gaps, num_rows)
        segments = np.bincount(row, minlength=num_rows)
        large = np.abs(gaps) * segments[row] > tolerance
        split = large & (np.abs(gap) > tolerance)[row] & (width > _SMALLEST)
        if not split.any():
            attribution = np.zeros((num_rows, parts.shape[1]))
            np.add.at(attribution, row, parts)
            return attribution, gap
        half = width[split] / 2
        halves = [
            np.tile(row[split], 2),
            np.concatenate([at[split], at[split] + half]),
            np.tile(half, 2),
        ]
        row, at, width = (
            np.concatenate([x[~split], new]) for x, new in zip((row, at, width), halves)
        )
        new_parts, new_gaps = measure(*halves)
        parts, gaps = (
            np.concatenate([parts[~split], new_parts]),
            np.concatenate([gaps[~split], new_gaps]),
        )


def _measure_all(segment, start, end, *segments) -> tuple[np.ndarray, np.ndarray]:
    """The segments in chunks of one shape, so that the program is compiled once."""
    found = []
    for first in range(0, len(segments[0]), _CHUNK):
        chunk = [
            np.resize(x[first : first + _CHUNK], _CHUNK) for x in segments
        ]  # repeated up to the full size
        row, at, width = (
            chunk[0].astype(np.int32),
            chunk[1].astype(np.float32),
            chunk[2].astype(np.float32),
        )
        found.append(segment(start, end, row, at, width))
    parts, gaps = (
        np.concatenate(x)[: len(segments[0])].astype(np.float64)
        for x in zip(*jax.device_get(found))
    )
    return parts, gaps


def _make_segment(score: Callable) -> Callable:
    """Makes segment(params, start, end, row i32[K], at, width f32[K]) -> (attributions f32[K, S], gaps f32[K])."""

    logit_of = lambda params, e: score(params, e)["logit"]

    def segment(params, start, end, row, at, width):
        start, end = (jax.tree.map(lambda x: x[row], e) for e in (start, end))
        difference = jax.tree.map(jnp.subtract, end, start)
        place = lambda a: jax.tree.map(lambda s, d: s + a[:, None, None] * d, start, difference)
        gradient = jax.grad(lambda e: logit_of(params, e).sum())
        slopes = [gradient(place(at + point.astype(np.float32) * width)) for point in _POINTS]
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *slopes)
        parts = jax.tree.map(lambda g, d: (g * d).sum(axis=-1) * width[:, None], mean, difference)
        parts = sum(jax.tree.leaves(parts))  # of an ensemble: over its members
        return parts, logit_of(params, place(at + width)) - logit_of(params, place(at)) - parts.sum(
            axis=1
        )

    return segment
