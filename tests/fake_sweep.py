"""A sweep's workdir without training: what sweep.py and train.py would leave, from scores that are drawn.

python tests/fake_sweep.py DIRECTORY POINTS SEEDS ROWS      # for benchmarks/report.py and for looking at a page
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax import config
from emofm_jax.evaluation import split_report

TYPES = ("click", "cart", "buy")


def make(
    workdir: Path,
    points: dict[str, tuple[float, dict]],
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    num_rows: int = 2000,
    reference: str = "",
    seed_noise: float = 0.02,
    skip: tuple[tuple[str, int], ...] = (),
    fail: tuple[tuple[str, int], ...] = (),
) -> Path:
    """Writes a sweep of `points`, {name: (strength of its signal, overrides)}.

    Overrides of `prepare` give other test rows, but for `hash_rows`, which only changes how rows are encoded.

    Args:
      reference: by default the first point.
      seed_noise: standard deviation of the strength over the seeds.
      skip: (point, seed) of runs that are not in yet.
      fail: (point, seed) of runs that failed.
    """
    rng = np.random.default_rng(0)
    truths = {"{}": _truth(rng, num_rows)}
    workdir.mkdir(parents=True)
    names = list(points)
    plan = {
        "experiment": "experiments/fake.py",
        "name": workdir.name,
        "points": names,
        "seeds": list(seeds),
    }
    (workdir / "sweep.json").write_text(json.dumps(plan | {"reference": reference or names[0]}))
    lines = []
    for name, (strength, overrides) in points.items():
        of_rows = {
            k: v for k, v in overrides.items() if k.startswith("prepare.") and "hash_rows" not in k
        }
        if (rows := repr(of_rows)) not in truths:
            truths[rows] = _truth(np.random.default_rng(len(truths)), num_rows)
        for seed in seeds:
            if (name, seed) in skip:
                continue
            run = {
                "point": name,
                "seed": seed,
                "status": "ok",
                "error": "",
                "overrides": overrides,
                "seconds": 61.5,
            }
            run |= {"metrics": None, "workdir": f"runs/{name}/seed-{seed}"}
            run["peak_memory_mib"] = 900.0 * 2**strength + seed
            if (name, seed) in fail:
                run |= {
                    "status": "failed",
                    "error": "step 12: the loss is not finite; lower the learning rate",
                }
            else:
                place = workdir / run["workdir"]
                run["metrics"] = _run(
                    place, rng, truths[rows], strength, overrides, seed, seed_noise
                )
            lines.append(json.dumps(run) + "\n")
    (workdir / "results.jsonl").write_text("".join(lines))
    return workdir


def _truth(rng, num_rows: int) -> dict:
    """Labels, types and true probabilities of the rows."""
    z = rng.normal(size=num_rows)
    p_type = rng.dirichlet(np.ones(len(TYPES)) * 2, num_rows)
    p_given_type = 1 / (1 + np.exp(2.2 - 1.1 * z[:, None] - np.array([-0.5, 0.0, 0.6])))
    ftype = (
        (p_type.cumsum(axis=1) < rng.random(num_rows)[:, None]).sum(axis=1).clip(max=len(TYPES) - 1)
    )
    label = (rng.random(num_rows) < p_given_type[np.arange(num_rows), ftype]).astype(np.int8)
    p = (p_type * p_given_type).sum(axis=1)
    return {"z": z, "ftype": ftype.astype(np.int8), "label": label} | {
        "truth": {"p": p, "p_type": p_type, "p_given_type": p_given_type}
    }


def _run(workdir, rng, truth, strength, overrides, seed, seed_noise) -> dict:
    """One run's workdir; returns its metrics."""
    z, num_rows = truth["z"], len(truth["z"])
    strength = strength + seed_noise * rng.normal()
    p_type = (0.5 * truth["truth"]["p_type"] + 0.5 / len(TYPES)).astype(np.float32)
    shifts = np.array([-0.5, 0.0, 0.6])
    guess = strength * z + 0.4 * rng.normal(size=num_rows)
    p_given_type = (1 / (1 + np.exp(2.2 - guess[:, None] - shifts))).astype(np.float32)
    p = (p_type * p_given_type).sum(axis=1)
    report = split_report.make(
        truth["label"],
        p,
        ftype=truth["ftype"],
        p_type=p_type,
        p_given_type=p_given_type,
        type_names=TYPES,
        truth=truth["truth"],
    )
    steps = np.arange(100, 1100, 100)
    part = report.to_json()
    curve = report.logloss + 0.2 * np.exp(-steps / 200) + 0.002 * rng.normal(size=len(steps))
    c = config.default()
    c.model.name = "hmm"
    with c.unlocked():
        c.update_from_flattened_dict({"name": "fake", "seed": seed} | overrides)
    evaluations = [
        {
            "step": int(s),
            "epoch": 0,
            "auc": part["auc"] - 0.1 * float(np.exp(-s / 300)),
            "logloss": float(x) + 0.001,
            "gauc": None,
            "pcoc": 1.0,
        }
        for s, x in zip(steps[1::2], curve[1::2])
    ]
    train = {
        "rows_per_s": 4e4 / (1 + strength) * rng.uniform(0.97, 1.03),
        "input_wait": 0.01,
        "steps": 1000,
        "epochs": 1,
    }
    train |= {"seconds": 58.0, "kept_step": 1000, "evaluations": evaluations}
    network = int(2e4 * (1 + strength) ** 6)
    parameters = {"embedding": 400_000, "network": network, "total": 400_000 + network}
    figures = {"valid": part, "test": part, "train": train, "parameters": parameters}
    (workdir / "predictions").mkdir(parents=True)
    (workdir / "config.json").write_text(c.to_json())
    (workdir / "metrics.json").write_text(json.dumps(figures))
    log = [
        {"event": "train", "step": int(s), "epoch": s / 1000, "logloss": float(x), "auc": 0.7}
        for s, x in zip(steps, curve)
    ]
    (workdir / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    environment = {
        "platform": "Linux",
        "packages": {"emofm_jax": "0.1.0", "jax": "0.10.2"},
        "devices": ["cpu:0 cpu"],
    }
    (workdir / "environment.json").write_text(
        json.dumps(environment | {"git_commit": "0123456789"})
    )
    rows = {"row": np.arange(num_rows), "label": truth["label"], "ftype": truth["ftype"], "p": p}
    pq.write_table(pa.table(rows), workdir / "predictions" / "test.parquet", compression="zstd")
    return figures


def many(workdir: Path, num_points: int, num_seeds: int, num_rows: int) -> Path:
    """A sweep of points with rising strength, a third of which vary one number."""
    points = {}
    for i in range(num_points):
        strength = 0.6 + 0.5 * (1 - np.exp(-3 * i / num_points))
        overrides = (
            {"model.mixer.d_att": 8 * (i + 1)}
            if i % 3
            else {"model.dropout": i / 1000, "model.norm": "layer"}
        )
        points[f"point_{i:03d}"] = (strength, overrides if i else {})
    return make(workdir, points, seeds=tuple(range(num_seeds)), num_rows=num_rows)


if __name__ == "__main__":
    many(Path(sys.argv[1]), *map(int, sys.argv[2:]))
