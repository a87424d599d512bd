"""The planted truth of the synthetic data: ids, latent vectors, weights, and rows drawn from them.

    h_s        = v_s[id], v_s[id] in R^3; of a bag the mean over its ids, zero if it is empty
    z_t        = b_t + sum_s w_st . h_s + sum_(s, s') h_s . M_ss't h_s'
    p(t|x)     = softmax_t(a_t + sum_s u_st . h_s + sum_(s, s') h_s . N_ss't h_s')
    p(y|x, t)  = E sigmoid(z_t + noise * normal);    p(y|x) = sum_t p(t|x) p(y|x, t)

The pairs (s, s') of z_t are within and across groups, those of p(t|x) are of a few slots. Main
effects, interactions, types and labels share the latent vectors, as what a user or an ad is
like decides all of them; so interactions have rank 3, and an id learnt in one place serves in all.
A vector is centred over the rows and shrinks with sqrt(P(id) / (P(id) + p_0)): rare ids act mostly
through what follows from them (an ad through its category), as in a log that can be learnt at all.
Neighbouring ids of ordered slots are alike. Weights of a type are (shared + type_strength * own),
each term scaled on a pilot sample so that the sizes stated below hold whatever the seed. `drift`
adds to the test rows' weights an independent draw of them, times the dial.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emofm_jax.data import shards
from emofm_jax.data.synthetic import population as population_lib
from emofm_jax.data.synthetic.population import SLOTS, Bags, Dials, Ids, Population, SlotPlan

CHUNK_ROWS = 1 << 13  # rows that are made at once, from a random stream of their own
PILOT_ROWS = 1 << 14  # on which weights are scaled and biases set
RANK = 3  # r, of the latent vector of an id, hence of every interaction
CLICK_RATE = 0.095
SMOOTHING = 1.5e-4  # p_0: an id of this popularity has 1/sqrt(2) of the full effect, rarer ids less
# Standard deviations, in nats of the label's logit: main effects, interactions within and across.
MAIN, WITHIN, ACROSS = 1.24, 0.72, 0.82
OWN = 1.0  # size of a type's own weights beside the shared ones, at type_strength 1
RATES = 0.5  # half the distance of the largest and the smallest bias of a type, in nats
TYPE_MAIN, TYPE_PAIRS = 1.1, 0.7  # standard deviations of each type's score
_WITHIN = (
    ("segment", "age"),
    ("page", "position"),
    ("category", "format"),
    ("clicked_categories", "recency"),
)
_ACROSS = (
    ("segment", "category"),
    ("age", "category"),
    ("clicked_categories", "category"),
    ("page", "format"),
    ("position", "activity"),
    ("depth", "page"),
)
_TYPE_SLOTS = ("page", "format", "position", "os", "category", "segment", "activity", "depth")
_TYPE_CROSSES = (("page", "format"), ("segment", "category"), ("depth", "position"))
_INDEX = {slot.name: i for i, slot in enumerate(SLOTS)}


class Weights(NamedTuple):
    """Weights of the label's logits."""

    main: np.ndarray  # f64[S, r, T]
    within: np.ndarray  # f64[pairs, r, r, T]
    across: np.ndarray  # f64[pairs, r, r, T]
    bias: np.ndarray  # f64[T]


class TypeWeights(NamedTuple):
    """Weights of the types' scores."""

    main: np.ndarray  # f64[S, r, T]
    pairs: np.ndarray  # f64[pairs, r, r, T]
    bias: np.ndarray  # f64[T]


@dataclasses.dataclass(frozen=True)
class World:
    """The planted truth."""

    population: Population
    latents: dict[str, np.ndarray]  # f64[rows, r], row 0 for a missing value, new ids last
    label: Weights  # of train and valid
    label_test: Weights  # of test
    types: TypeWeights

    @property
    def dials(self) -> Dials:
        """The dials that the world was made with."""
        return self.population.dials


class Rows(NamedTuple):
    """A chunk of n rows."""

    ids: Ids
    label: np.ndarray  # i8[n]
    ftype: np.ndarray  # i8[n]
    p: np.ndarray  # f64[n], p(y=1|x)
    p_type: np.ndarray  # f64[n, T], p(t|x)
    p_given_type: np.ndarray  # f64[n, T], p(y=1|x, t)
    # f64[n, T] each: main effects, interactions within and across groups; with the bias, the logit.
    parts: tuple[np.ndarray, np.ndarray, np.ndarray]


def make_world(dials: Dials) -> World:
    """Plants the truth: ids, latent vectors, weights of the stated sizes, biases for the rates.

    Raises:
      UserError: a dial is out of range.
    """
    dials.check()
    stream = functools.partial(population_lib.stream, dials)
    rng = stream("world")
    population = population_lib.make_population(dials, rng)
    popularity = population.popularity
    latents = {slot.name: _latents(slot, popularity[slot.name], dials, rng) for slot in SLOTS}

    pilot = population_lib.draw_ids(population, PILOT_ROWS, stream("pilot"))
    h = _vectors(latents, pilot)
    types = _make_types(dials, h, rng)
    label = label_test = _make_label(dials, h, types, rng)
    if dials.drift:
        moved = _make_label(dials, h, types, stream("drift"))
        main, within, across = (a + dials.drift * b for a, b in zip(label[:3], moved[:3]))
        label_test = Weights(main, within, across, label.bias)
    return World(population, latents, label, label_test, types)


def make_rows(world: World, split: str) -> Iterator[Rows]:
    """The rows of a split in chunks of CHUNK_ROWS; the first ones do not depend on how many."""
    num_rows = world.dials.rows[shards.SPLITS.index(split)]
    for chunk, start in enumerate(range(0, num_rows, CHUNK_ROWS)):
        yield _first(_make_chunk(world, split, chunk), num_rows - start)


def _make_chunk(world: World, split: str, chunk: int) -> Rows:
    """Draws CHUNK_ROWS rows."""
    dials, n, is_test = world.dials, CHUNK_ROWS, split == "test"
    label = world.label_test if is_test else world.label
    rng = population_lib.stream(dials, split, chunk)
    fresh = None
    if is_test and dials.new_id_rate:
        fresh = population_lib.stream(dials, "new", chunk)
    ids = population_lib.draw_ids(world.population, n, rng, fresh)

    h = _vectors(world.latents, ids)
    parts = label_parts(label, h)
    logits, p_type = sum(parts) + label.bias, type_probs(world.types, h)
    if dials.unseen_type and not is_test:
        p_type[:, dials.types.index(dials.unseen_type)] = 0
        p_type /= p_type.sum(1, keepdims=True)
    p_given_type = expected_sigmoid(logits, dials.noise)
    p = (p_type * p_given_type).sum(1)

    uniform, shock = rng.random((2, n)), dials.noise * rng.standard_normal(n)
    ftype = (uniform[0][:, None] > np.cumsum(p_type, 1)[:, :-1]).sum(1)
    clicked = uniform[1] < _sigmoid(logits[np.arange(n), ftype] + shock)
    return Rows(ids, clicked.astype(np.int8), ftype.astype(np.int8), p, p_type, p_given_type, parts)


def _first(rows: Rows, n: int) -> Rows:
    """The first `n` rows; all if there are fewer."""
    n = min(n, len(rows.label))
    cut = lambda x: Bags(x.ids[: x.starts[n]], x.starts[: n + 1]) if isinstance(x, Bags) else x[:n]
    whole = rows._asdict()
    ids, parts = whole.pop("ids"), whole.pop("parts")
    return Rows(
        ids={name: cut(x) for name, x in ids.items()},
        parts=tuple(x[:n] for x in parts),
        **{name: x[:n] for name, x in whole.items()},
    )


def label_parts(weights: Weights, h: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts of the logits, as in `Rows`, of vectors h f64[n, S, r]."""
    within, across = _pairs(h, _WITHIN, weights.within), _pairs(h, _ACROSS, weights.across)
    return _main(h, weights.main), within, across


def type_probs(weights: TypeWeights, h: np.ndarray) -> np.ndarray:
    """p(t | x), f64[n, T], of vectors h f64[n, S, r]."""
    return _softmax(_main(h, weights.main) + _pairs(h, _TYPE_CROSSES, weights.pairs) + weights.bias)


def expected_sigmoid(logits: np.ndarray, noise: float) -> np.ndarray:
    """E sigmoid(logit + noise * normal), by Gauss-Hermite quadrature."""
    if not noise:
        return _sigmoid(logits)
    nodes, weights = np.polynomial.hermite.hermgauss(32)
    shocked = (w * _sigmoid(logits + noise * np.sqrt(2) * x) for x, w in zip(nodes, weights))
    return sum(shocked) / np.sqrt(np.pi)


def _latents(
    slot: SlotPlan, popularity: np.ndarray, dials: Dials, rng: np.random.Generator
) -> np.ndarray:
    """f64[rows, r]: centred over the rows, smaller for rare ids, smooth in k for ordered ones."""
    if slot.ordered:
        waves = np.cos(np.pi * np.arange(1, 6) * (np.arange(slot.size)[:, None] + 0.5) / slot.size)
        v = waves @ (rng.standard_normal((5, RANK)) / np.arange(1, 6)[:, None])
    else:
        v = rng.standard_normal((slot.size, RANK))

    scale = np.sqrt(popularity / (popularity + SMOOTHING))
    missing = rng.standard_normal((1, RANK))
    new = rng.standard_normal((population_lib.num_new_ids(slot), RANK)) * scale.min()
    v *= scale[:, None]
    return np.concatenate([missing, v, new if dials.new_id_rate else new[:0]]) - popularity @ v


def _vectors(latents: dict[str, np.ndarray], ids: Ids) -> np.ndarray:
    """h f64[n, S, r]: each slot's latent vector."""
    h = np.empty((len(ids["hour"]), len(SLOTS), RANK))
    for s, slot in enumerate(SLOTS):
        found, table = ids[slot.name], latents[slot.name]
        if isinstance(found, Bags):
            sums = np.concatenate([np.zeros((1, RANK)), np.cumsum(table[found.ids], 0)])
            starts, lengths = found.starts, np.maximum(np.diff(found.starts), 1)
            h[:, s] = (sums[starts[1:]] - sums[starts[:-1]]) / lengths[:, None]
        else:
            h[:, s] = table[found]
    return h


def _mixed(rng: np.random.Generator, shape: tuple, num_types: int, strength: float) -> np.ndarray:
    """f64[*shape, T]: weights that the types share, plus `strength` times weights of their own."""
    return rng.standard_normal((*shape, 1)) + strength * rng.standard_normal((*shape, num_types))


def _main(h: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Main effects f64[n, T] of weights f64[S, r, T]."""
    return h.reshape(len(h), -1) @ weights.reshape(-1, weights.shape[-1])


def _pair(h: np.ndarray, pair: tuple[str, str], matrix: np.ndarray) -> np.ndarray:
    """One bilinear interaction, f64[n, T]: sum_ab h_i[a] matrix[a, b, t] h_j[b]."""
    a, b = (h[:, _INDEX[name]] for name in pair)
    left = (a @ matrix.reshape(RANK, -1)).reshape(len(h), RANK, -1)  # [n, r, T]
    return np.einsum("nrt,nr->nt", left, b)


def _pairs(h: np.ndarray, pairs: tuple, matrices: np.ndarray) -> np.ndarray:
    each = (_pair(h, pair, matrix) for pair, matrix in zip(pairs, matrices))
    return sum(each, start=np.zeros(()))


def _scaled_main(h, raw: np.ndarray, weight: np.ndarray, deviation: float) -> np.ndarray:
    """Scales weights so that slot s contributes like weight[s], and all by `deviation` nats."""
    each = np.stack([(h[:, s] @ raw[s]).std(0) for s in range(len(SLOTS))])  # [S, T]
    scaled = raw * (weight[:, None] / each)[:, None, :]
    return scaled * (deviation / _main(h, scaled).std(0))


def _scaled_pairs(h, pairs: tuple, raw: np.ndarray, deviation: float) -> np.ndarray:
    """Scales matrices so that all pairs contribute alike, and `deviation` nats together."""
    scaled = np.stack([m / _pair(h, pair, m).std(0) for pair, m in zip(pairs, raw)])
    return scaled * (deviation / _pairs(h, pairs, scaled).std(0))


def _make_types(dials: Dials, h: np.ndarray, rng: np.random.Generator) -> TypeWeights:
    """Weights of the types' scores; biases give type t the share (T - t) / (1 + ... + T)."""
    num_types = max(1, dials.num_types)
    weight = np.array([float(slot.name in _TYPE_SLOTS) for slot in SLOTS])
    main = _scaled_main(h, rng.standard_normal((len(SLOTS), RANK, num_types)), weight, TYPE_MAIN)
    raw = rng.standard_normal((len(_TYPE_CROSSES), RANK, RANK, num_types))
    shares = np.arange(num_types, 0, -1) / (num_types * (num_types + 1) / 2)
    pairs = _scaled_pairs(h, _TYPE_CROSSES, raw, TYPE_PAIRS)

    score, bias = _main(h, main) + _pairs(h, _TYPE_CROSSES, pairs), np.log(shares)
    for _ in range(50):
        bias = bias + np.log(shares / _softmax(score + bias).mean(0))
    return TypeWeights(main, pairs, bias)


def _make_label(
    dials: Dials, h: np.ndarray, types: TypeWeights, rng: np.random.Generator
) -> Weights:
    """Weights of the label; biases RATES apart between the types that give CLICK_RATE over all."""
    num_types, strength = max(1, dials.num_types), OWN * dials.type_strength
    weight = np.array([slot.weight for slot in SLOTS])
    main = _scaled_main(h, _mixed(rng, (len(SLOTS), RANK), num_types, strength), weight, MAIN)
    within = _mixed(rng, (len(_WITHIN), RANK, RANK), num_types, strength)
    across = _mixed(rng, (len(_ACROSS), RANK, RANK), num_types, strength)
    across = _scaled_pairs(h, _ACROSS, across, ACROSS) * dials.cross_strength
    weights = Weights(main, _scaled_pairs(h, _WITHIN, within, WITHIN), across, np.zeros(num_types))

    logits, p_type = sum(label_parts(weights, h)), type_probs(types, h)
    offset = np.zeros(1)
    if num_types > 1:
        offset = RATES * dials.type_strength * np.linspace(-1, 1, num_types)

    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        rate = (p_type * expected_sigmoid(logits + middle + offset, dials.noise)).sum(1).mean()
        low, high = (middle, high) if rate < CLICK_RATE else (low, middle)
    return weights._replace(bias=middle + offset)


def _softmax(score: np.ndarray) -> np.ndarray:
    score = np.exp(score - score.max(1, keepdims=True))
    return score / score.sum(1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)
