"""Rows of another generator, in the CTI competition's format: 300,000, three types, a known truth.

    python benchmarks/cti_rows.py --out=data/raw/cti
    python -m emofm_jax.prepare --config=experiments/cti.py --config.prepare.source=data/raw/cti
    python -m emofm_jax.train --config=experiments/cti.py --workdir=runs/cti

It shares no code and no formula with the package's synthetic data: users, ads and sites have latent
factors that meet in a matrix of each type, and the type follows user, site, ad and hour. Prints the
Bayes-optimal AUC and logloss of each split, of which a model's share can be told. truth_SPLIT.npy
holds P(click | features) of the rows.
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from sklearn import metrics

_OUT = flags.DEFINE_string("out", None, "Directory to make.", required=True)
_SEED = flags.DEFINE_integer("seed", 5, "Of the world and its rows.")

ROWS = {"train": 240_000, "valid": 30_000, "test": 30_000}
USERS, ADS, SITES, HOURS, TYPES, WIDTH = 20_000, 3_000, 400, 24, 3, 6
OF_USER, OF_AD = {"102": 8, "103": 40, "104": 300}, {"302": 60, "303": 400, "304": 5}
SLOTS = ("101", *OF_USER, "201", "202", "203", "301", *OF_AD, "401", "402")
RATES = np.array([-2.6, -1.2, -1.9])


def popular(n, power):
    """Shares of n things by rank."""
    share = 1 / np.arange(1, n + 1) ** power
    return share / share.sum()


class World:
    """What is true of users, ads, sites and hours."""

    def __init__(self, rng):
        factors = lambda n, scale: rng.normal(0, scale, (n, WIDTH))
        self.base = dict(zip(SLOTS, rng.integers(1 << 40, 1 << 55, len(SLOTS))))
        self.of_user = {slot: rng.integers(0, n, USERS) for slot, n in OF_USER.items()}
        self.of_ad = {slot: rng.integers(0, n, ADS) for slot, n in OF_AD.items()}
        self.user, self.ad = factors(USERS, 0.5), factors(ADS, 0.5)
        for slot, scale in (("102", 0.4), ("103", 0.5), ("104", 0.5)):
            self.user += factors(OF_USER[slot], scale)[self.of_user[slot]]
        for slot, scale in (("302", 0.5), ("303", 0.5), ("304", 0.3)):
            self.ad += factors(OF_AD[slot], scale)[self.of_ad[slot]]
        self.site, self.hour = factors(SITES, 0.4), factors(HOURS, 0.2)
        meets = [0.9 * np.eye(WIDTH) + 0.5 * rng.normal(size=(WIDTH, WIDTH)) for _ in range(TYPES)]
        self.meets = np.stack(meets)
        sizes = ((USERS, 0.45), (ADS, 0.6), (SITES, 0.3))
        self.first_order = [rng.normal(0, scale, (TYPES, n)) for n, scale in sizes]
        sizes = ((USERS, 0.5), (SITES, 1.1), (OF_AD["304"], 0.7), (HOURS, 0.6))
        self.of_type = [rng.normal(0, scale, (TYPES, n)) for n, scale in sizes]

    def type_probs(self, user, ad, site, hour):
        """P(type | features), [TYPES, rows]."""
        where = (user, site, self.of_ad["304"][ad], hour)
        logits = sum(w[:, i] for w, i in zip(self.of_type, where))
        logits = np.exp(logits + np.array([0.9, -0.2, -1.0])[:, None])
        return logits / logits.sum(axis=0)

    def click_probs(self, user, ad, site, hour, history):
        """P(click | features, type), [TYPES, rows]."""
        u, a, first = self.user[user], self.ad[ad], self.first_order
        common = 0.5 * (self.site[site] * a).sum(1) + 0.5 * (self.hour[hour] * u).sum(1)
        met = np.einsum("bi,tij,bj->tb", u + 0.6 * history, self.meets, a) / 1.6
        logits = met + common + first[0][:, user] + first[1][:, ad] + first[2][:, site]
        return 1 / (1 + np.exp(-(logits + RATES[:, None])))


def write(world, rng, path, count):
    """Draws rows and writes them; prints what is attainable."""
    user = rng.choice(USERS, count, p=popular(USERS, 0.6))
    ad = rng.choice(ADS, count, p=popular(ADS, 0.7))
    site = rng.choice(SITES, count, p=popular(SITES, 0.8))
    hour, place = rng.integers(0, HOURS, count), rng.integers(0, 12, count)
    seen = [rng.choice(ADS, n, p=popular(ADS, 0.7)) for n in rng.integers(0, 8, count)]
    words = [rng.integers(0, 200, n) for n in rng.integers(0, 4, count)]
    history = np.stack([world.ad[x].mean(0) if len(x) else np.zeros(WIDTH) for x in seen])

    of_type = world.type_probs(user, ad, site, hour)
    ftype = (of_type.cumsum(0) < rng.random(count)).sum(0).clip(0, TYPES - 1)
    given = world.click_probs(user, ad, site, hour, history)
    click = (rng.random(count) < given[ftype, np.arange(count)]).astype(int)
    truth = (of_type * given).sum(0)
    np.save(path.with_name(f"truth_{path.stem}.npy"), truth)

    token = lambda slot, i: f"{world.base[slot] + 7919 * int(i)}:{slot}"
    with open(path, "w") as file:
        for i in range(count):
            cells = [str(click[i]) if t == ftype[i] else "-" for t in range(TYPES)]
            found = [
                token("101", user[i]),
                *(token(s, x[user[i]]) for s, x in world.of_user.items()),
            ]
            found += [token("201", site[i]), token("202", hour[i]), token("203", place[i])]
            found += [token("301", ad[i]), *(token(s, x[ad[i]]) for s, x in world.of_ad.items())]
            found += [token("401", x) for x in seen[i]] + [token("402", x) for x in words[i]]
            file.write("\t".join([str(i), *cells, " ".join(found)]) + "\n")
    auc, loss = metrics.roc_auc_score(click, truth), metrics.log_loss(click, truth)
    print(
        f"{path}: {count:,} rows, click rate {click.mean():.4f}, attainable {auc:.4f} / {loss:.4f}"
    )


def main(argv):
    del argv
    out, rng = Path(_OUT.value), np.random.default_rng(_SEED.value)
    out.mkdir(parents=True)
    world = World(rng)
    for split, count in ROWS.items():
        write(world, rng, out / f"{split}.tsv", count)


if __name__ == "__main__":
    app.run(main)
