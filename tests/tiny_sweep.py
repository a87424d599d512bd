"""A sweep small enough for a test, of models that compile at once; the argument chooses what is wrong with it."""

from pathlib import Path

from emofm_jax import points

tiny = points.load(Path(__file__).with_name("tiny.py"))
ranges = {
    "optim.network.learning_rate": ("log", 1e-3, 1e-1),
    "model.activation": ("choice", ["sine", "relu", "tanh"]),  # no sine
}


def seeds(arg=""):
    return 3 if arg == "three" else (0, 1)


def get_config(arg=""):
    c = tiny.get_config("dnn")
    c.prepare.synthetic.rows = (600, 300, 300)
    c.prepare.synthetic.num_types = 2
    c.model.embedding_dim = 2
    c.model.hidden = (8,)
    c.model.dropout = 0.1
    c.train.save_every_steps = 2
    return c


def sweep(arg=""):
    yield "dnn", {}
    if arg == "failing":
        yield "nan", {"optim.network.learning_rate": 1e30, "optim.embedding.learning_rate": 1e30}
        yield "huge", {"model.hidden": (10_000_000, 10_000_000)}
        yield "drift", {"prepare.synthetic.unseen_type": "t9", "data.dir": "impossible"}
    if arg == "twice":
        yield "DNN", {}
    if arg == "unknown":
        yield "x", {"model.mixer.knd": "graph"}
    if arg == "clash":
        yield "x", {"prepare.synthetic.drift": 1.0}
    if arg == "idle":
        yield "x", {"model.stage1": (3,)}
    if arg == "name":
        yield "a/b", {}
    if arg == "broken":
        yield "x", {"model.name": 1 / 0}
    if arg == "exit":
        raise SystemExit("no more")
    if arg == "seed":
        yield "x", {"seed": 3}
    if arg == "model":
        yield "x", {"model.name": "dnnn"}
    lr = tiny.get_config("lr")
    lr.update(get_config())
    with lr.unlocked():
        lr.model.name = "lr"
    yield "lr", lr
