"""Who and what occurs in the synthetic data: slots, how often each id is drawn, what follows.

    id      ~ (k + 1)^-zipf over the ids of a slot, in no order; or it follows from a parent's id
    user_id   -> gender, age, city, occupation, segment, activity
    ad_id     -> campaign -> advertiser -> category;  format, price;  campaign -> landing
    device    -> os;  depth -> lengths of the bags
    clicked_items -> clicked_categories, last_category

Users of a segment come back to a few items of its own, so that the session group tells of the user.
Some values are missing (row 0). `new_id_rate` swaps ids of test rows for ids that training never
saw, in the slots that grow with time: what follows from the id, such as the campaign of a new ad,
stays.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emofm_jax.errors import UserError
from emofm_jax.options import option, options_of

MAX_LENGTH = 10  # ids of a bag
FAVOURITES, FAVOURED = 40, 0.3  # items that a user segment comes back to, and how often
# Random streams, by their numbers.
STREAMS = ("train", "valid", "test", "pilot", "world", "drift", "new", "noise")


class SlotPlan(NamedTuple):
    """How a slot is drawn (ids 0 .. size - 1, popularity (k + 1)^-zipf) and how much it weighs."""

    name: str
    group: str
    size: int
    zipf: float = 0.0
    weight: float = 0.0  # share of its main effect, relative to the other slots
    parent: str = ""  # slot whose id decides this one's
    missing: float = 0.0  # share of rows without a value
    ordered: bool = False  # neighbouring ids have similar effects
    bag: bool = False
    grows: bool = False  # new ids appear in it with time


SLOTS = (
    SlotPlan("user_id", "user", 50_000, 1.05, 0.5, grows=True),
    SlotPlan("gender", "user", 2, 0.3, 0.5, "user_id", missing=0.05),
    SlotPlan("age", "user", 9, 0.0, 0.9, "user_id", missing=0.08, ordered=True),
    SlotPlan("city", "user", 120, 1.1, 0.5, "user_id", missing=0.03),
    SlotPlan("occupation", "user", 16, 0.6, 0.6, "user_id", missing=0.15),
    SlotPlan("segment", "user", 24, 0.5, 1.0, "user_id"),
    SlotPlan("activity", "user", 6, 0.0, 0.8, "user_id", ordered=True),
    SlotPlan("hour", "scene", 24, 0.0, 0.6, ordered=True),
    SlotPlan("weekday", "scene", 7, 0.0, 0.3),
    SlotPlan("device", "scene", 300, 1.1, 0.5, missing=0.02),
    SlotPlan("os", "scene", 4, 0.5, 0.5, "device"),
    SlotPlan("network", "scene", 5, 0.6, 0.5),
    SlotPlan("page", "scene", 80, 1.1, 1.1),
    SlotPlan("position", "scene", 8, 0.7, 1.2, ordered=True),
    SlotPlan("ad_id", "ad", 8_000, 1.1, 0.6, grows=True),
    SlotPlan("campaign", "ad", 1_500, 0.0, 0.6, "ad_id"),
    SlotPlan("advertiser", "ad", 300, 0.0, 0.8, "campaign"),
    SlotPlan("category", "ad", 30, 0.0, 1.2, "advertiser"),
    SlotPlan("format", "ad", 6, 0.5, 0.8, "ad_id"),
    SlotPlan("landing", "ad", 20, 0.6, 0.5, "campaign"),
    SlotPlan("price", "ad", 12, 0.0, 0.6, "ad_id", missing=0.04, ordered=True),
    SlotPlan("depth", "session", 8, 0.7, 0.8, ordered=True),
    SlotPlan("recency", "session", 10, 0.4, 0.8, missing=0.1, ordered=True),
    SlotPlan("clicked_items", "session", 12_000, 1.1, 0.5, bag=True, grows=True),
    SlotPlan("clicked_categories", "session", 30, 0.0, 0.9, "clicked_items", bag=True),
    SlotPlan("search_terms", "session", 3_000, 1.15, 0.5, bag=True, grows=True),
    SlotPlan("visited_pages", "session", 80, 1.1, 0.6, bag=True),
    SlotPlan("last_category", "session", 30, 0.0, 0.6, "clicked_items"),
)
GROUPS = tuple(dict.fromkeys(slot.group for slot in SLOTS))


class Bags(NamedTuple):
    """Bags of n rows: the ids of all, i32, and where each row's begin, i64[n + 1]."""

    ids: np.ndarray
    starts: np.ndarray


Ids = dict[str, np.ndarray | Bags]  # per slot, table rows of n rows: i32[n], 0 = missing, or bags


@dataclasses.dataclass(frozen=True)
class Dials:
    """`config.prepare.synthetic`."""

    rows: tuple = option((400_000, 50_000, 50_000), "rows of train, valid, test", of=int)
    num_types: int = option(4, "T, interaction types; 0 = untyped")
    type_strength: float = option(1.0, "how much the label's weights differ by type", low=0)
    cross_strength: float = option(1.0, "strength of interactions across groups", low=0)
    noise: float = option(
        0.0, "deviation of noise on the label's logit, which no model knows", low=0
    )
    drift: float = option(0.0, "how far the test day's weights have moved, as a share", low=0)
    new_id_rate: float = option(0.0, "share of test ids that training never saw")
    unseen_type: str = option("", "type that training never shows")
    hash_rows: int = option(0, "table rows of each slot that grows, by hash; 0 = one an id")
    group_slots: tuple = option((), "slots of user, scene, ad, session; () = all 7", of=int)
    seed: int = option(0, "seed of the planted truth and of the rows", low=0)

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the types: t1, t2, ..., from the most to the least frequent."""
        return tuple(f"t{t + 1}" for t in range(self.num_types))

    def check(self) -> None:
        """Raises UserError on a value that no data can be made with."""
        where = "config.prepare.synthetic"
        for name, described in options_of(Dials).items():
            described.check(f"{where}.{name}", getattr(self, name))
        for problem in self._problems():
            raise UserError(f"{where}.{problem}")

    def _problems(self) -> Iterator[str]:
        rows, groups = tuple(self.rows), tuple(self.group_slots)
        if len(rows) != 3 or min(rows) < 1:
            yield f"rows: {rows} must be three positive numbers of train, valid, test"
        if not 0 <= self.num_types <= 127:
            yield f"num_types: {self.num_types} must be between 0 and 127; 0 makes untyped data"
        if self.hash_rows < 0 or self.hash_rows == 1:
            yield f"hash_rows: {self.hash_rows} must be at least 2, or 0 for a row an id"
        if groups and (len(groups) != len(GROUPS) or min(groups) < 1):
            yield f"group_slots: {groups} must be positive, of {', '.join(GROUPS)}; or empty"
        if not 0 <= self.new_id_rate <= 1:
            yield f"new_id_rate: {self.new_id_rate} is no share; it must be between 0 and 1"
        if self.unseen_type and (self.unseen_type not in self.types or self.num_types < 2):
            problem = f"{self.unseen_type!r} cannot be left out of the types {list(self.types)}"
            yield f"unseen_type: {problem}; name one of at least two, or none"


@dataclasses.dataclass(frozen=True)
class Population:
    """What the ids are drawn from."""

    dials: Dials
    popularity: dict[str, np.ndarray]  # f64[size]: how often each id occurs, favourites aside
    cumulative: dict[str, np.ndarray]  # f64[size - 1]: its running sum, without the last
    parents: dict[str, np.ndarray]  # i32[size of the parent]: the id that follows from a parent's
    favourites: np.ndarray  # i32[segments, FAVOURITES]: items that a segment's users come back to


def make_population(dials: Dials, rng: np.random.Generator) -> Population:
    """Draws popularities and what follows from what."""
    popularity, parents = {}, {}
    for slot in SLOTS:
        popularity[slot.name] = own = _popularity(slot, rng)
        if slot.parent:
            ids = rng.choice(slot.size, len(popularity[slot.parent]), p=own).astype(np.int32)
            parents[slot.name] = ids
            popularity[slot.name] = np.bincount(ids, popularity[slot.parent], slot.size)

    items, segments = popularity["clicked_items"], popularity["segment"]
    favourites = rng.choice(len(items), (len(segments), FAVOURITES), p=items).astype(np.int32)
    cumulative = {name: np.cumsum(p)[:-1] for name, p in popularity.items()}
    return Population(dials, popularity, cumulative, parents, favourites)


def draw_ids(
    population: Population,
    num_rows: int,
    rng: np.random.Generator,
    fresh: np.random.Generator | None = None,
) -> Ids:
    """Draws the ids of n rows.

    Args:
      num_rows: n.
      fresh: draws ids that training never saw, at the dial's rate; None = no such ids.
    """
    raw: dict[str, np.ndarray] = {}
    starts: dict[str, np.ndarray] = {}
    ids: Ids = {}
    for slot in SLOTS:
        empty: np.ndarray | bool = False
        if slot.parent in starts and not slot.bag:  # the first id of a bag decides
            first, end = starts[slot.parent][:-1], starts[slot.parent][1:]
            empty = first == end
            k = population.parents[slot.name][raw[slot.parent][np.minimum(first, end[-1] - 1)]]
        elif slot.parent:
            k = population.parents[slot.name][raw[slot.parent]]
            if slot.bag:
                starts[slot.name] = starts[slot.parent]
        else:
            num_ids = num_rows
            if slot.bag:
                lengths = rng.binomial(MAX_LENGTH, 0.1 + 0.08 * raw["depth"])
                starts[slot.name] = np.concatenate([[0], np.cumsum(lengths)])
                num_ids = starts[slot.name][-1]
            edges, uniform = population.cumulative[slot.name], rng.random(num_ids)
            k = np.searchsorted(edges, uniform, side="right").astype(np.int32)

        if slot.name == "clicked_items":
            segment = np.repeat(raw["segment"], lengths)
            favourite = population.favourites[segment, k % FAVOURITES]
            k = np.where(rng.random(len(k)) < FAVOURED, favourite, k)
        raw[slot.name], row = k, k + 1
        if slot.grows and fresh is not None:
            new = fresh.integers(slot.size + 1, slot.size + 1 + num_new_ids(slot), len(k))
            row = np.where(fresh.random(len(k)) < population.dials.new_id_rate, new, row)
        if slot.missing:
            empty = rng.random(len(k)) < slot.missing

        row = np.where(empty, 0, row).astype(np.int32)
        ids[slot.name] = Bags(row, starts[slot.name]) if slot.bag else row
    return ids


def num_new_ids(slot: SlotPlan) -> int:
    """Ids of a slot that only test rows show, at a new_id_rate above zero."""
    return slot.size // 4 if slot.grows else 0


def stream(dials: Dials, name: str, *place: int) -> np.random.Generator:
    """A random stream of its own for each name and place, such as a chunk."""
    return np.random.default_rng([dials.seed, STREAMS.index(name), *(place or (0,))])


def _popularity(slot: SlotPlan, rng: np.random.Generator) -> np.ndarray:
    """Zipf, in no order unless the ids are ordered; without an exponent uniform, or a hump."""
    k = np.arange(slot.size)
    if slot.zipf or not slot.ordered:
        p = (k + 1.0) ** -slot.zipf
    else:
        p = 1.3 - np.cos(2 * np.pi * (k + 0.5) / slot.size)
    return (p if slot.ordered else rng.permutation(p)) / p.sum()
