"""Other distributions: the data change, ids and types are new, types say nothing, and more.

    python -m emofm_jax.sweep --config=experiments/shift.py --workdir=runs/shift
    python -m emofm_jax.report --workdir=runs/shift

Questions:
- Do the typed models (HMM, WM) keep their lead over a plain DNN when the test day moves (drift), or
  when ids or a whole type never occurred in training?
- Do they overfit when the types say nothing (same_types: type_strength=0)?
- Is one epoch right?
- What do hash collisions cost? (hash_rows of each of the four slots that grow, 12,000 to 50,000 ids
  in the largest; the other slots have a row for each id.)
- Do groups of unequal sizes hurt mixers? (A point's name gives the slots of user, scene, ad,
  session. Beyond the 7 informative ones of a group they are noise, so 15+15+15+16 has as much of it
  as 7+7+7+40.)

Data: the quickstart's with one dial moved, 100,000 rows, types hidden at test time. Settings are
the quickstart's. Each dial makes its own truth: compare shares of the attainable lift, and models
within a dial. 3 seeds of training; the data have one seed.

56 points, 168 runs, 45 minutes with --jobs=2 on two cores (AMD EPYC), November 2026. Result, in
shares of the attainable lift:
- Full drift costs DNN, WM and HMM 0.27 to 0.29.
- New ids cost 0.01.
- An unseen type costs 0.09 (0.30 of the rows) and 0.03 to 0.04 (0.10 of the rows).
- Where types say nothing HMM is 0.019 and WM 0.032 behind DNN.
- Two epochs bring HMM 0.006 AUC and no logloss; three are 0.016 AUC worse than one.
- Collisions cost nothing.
- Noise in one group costs HMM 0.6 of what noise in all groups does.
docs/results/shift.md has it all.
"""

from pathlib import Path

from emofm_jax import points

HERE = Path(__file__).parent
quickstart, tiny = (points.load(HERE / f"{name}.py") for name in ("quickstart", "tiny"))
reference = "hmm"
# Dial of prepare.synthetic -> {name of its value: value}, and the models that are compared.
DIALS = {
    "drift": ({"drift_0.25": 0.25, "drift_0.5": 0.5, "drift_1": 1.0}, ("dnn", "wm", "hmm")),
    "new_id_rate": ({"new_ids_0.1": 0.1, "new_ids_0.3": 0.3}, ("dnn", "wm", "hmm")),
    "unseen_type": ({"unseen_t2": "t2", "unseen_t4": "t4"}, ("dnn", "wm", "hmm")),
    "type_strength": ({"same_types": 0.0}, ("dnn", "wm", "hmm")),
    "hash_rows": ({f"hash_1e{n}": 10**n for n in (3, 4, 5, 6)}, ("dnn", "hmm")),
    "group_slots": (
        {
            "+".join(map(str, s)): s
            for s in ((15, 15, 15, 16), (7, 7, 7, 40), (40, 7, 7, 7), (1, 7, 7, 40))
        },
        ("wm", "hm", "hmm"),
    ),
}
OF_TINY = ("hmm", "dnn_hash_1e3")


def get_config(arg: str = ""):
    return _config(arg, "hmm", {})


def seeds(arg=""):
    return range(2 if tiny.wanted(arg) else 3)


def sweep(arg=""):
    return [
        (name, _config(arg, *what))
        for name, what in _points()
        if not tiny.wanted(arg) or name in OF_TINY
    ]


def _points():
    """(name, (model, overrides)) of each point."""
    for model in ("dnn", "wm", "hm", "hmm"):
        yield model, (model, {})
    for dial, (values, models) in DIALS.items():
        for name, value in values.items():
            for model in models:
                data = f"data/rows_100000_{name}"
                yield (
                    f"{model}_{name}",
                    (model, {f"prepare.synthetic.{dial}": value, "data.dir": data}),
                )
    for epochs in (2, 3, 4, 5):
        for model in ("dnn", "hmm"):
            yield f"{model}_epochs_{epochs}", (model, {"train.epochs": epochs})


def _config(arg, model, changes):
    c = quickstart.get_config(model)
    c.name = "shift"
    c.prepare.synthetic.rows = (100_000, 50_000, 50_000)
    c.data.dir = "data/rows_100000"
    c = points.apply(c, changes, f"shift: {model}")
    return tiny.shrink(c) if tiny.wanted(arg) else c
