"""Every option, its default, meaning and unit. An experiment file states only what differs from `default()`.

from emofm_jax import config

def get_config(arg=""):
    c = config.default()
    c.data.dir = "data/mine"
    return c
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from emofm_jax.errors import UserError
from emofm_jax.validation import get, validate

__all__ = ["default", "load", "get", "flatten", "difference", "validate"]

_RENAMED = {
    "optim.embedding.update": "optim.embedding.updates"
}  # the older name is in runs of before 2026-11-26


def default() -> ConfigDict:
    """All options, locked: a misspelt field is an error, in an experiment file too."""
    c = ConfigDict()
    c.name = "experiment"  # of the data set and run, for tables and titles
    c.seed = 0  # of initialisation, dropout and the order of rows
    c.compute_dtype = (
        "float32"  # of the network's products: float32 | bfloat16 (parameters stay float32)
    )

    # Raw data -> shards (`python -m emofm_jax.prepare`). docs/data.md explains each with an example.
    c.prepare = p = ConfigDict()
    p.format = "tabular"  # tabular | libsvm | cti | synthetic
    p.source = ""  # directory or file of raw data
    p.split = "files"  # files: one per split | share: by hash(seed, row) | day: by a column's value
    p.files = ConfigDict(
        {"train": "train.*", "valid": "valid.*", "test": "test.*"}
    )  # globs inside `source`
    p.shares = (0.8, 0.1, 0.1)  # split=share: of the rows for train, valid, test
    p.day_column = ""  # split=day: column that holds the day
    p.day_length = 0  # split=day: leading characters of it that are the day; 0 = all
    p.valid_days = ()  # split=day: days of the validation split; days of neither go to train
    p.test_days = ()  # split=day: days of the test split
    p.seed = 0  # of split=share and of the hashes
    p.max_rejected = 0  # bad rows of a split that are tolerated (and counted) before it is an error
    p.separator = ","  # tabular text: between columns
    p.header = True  # tabular text: the first line names the columns
    p.columns = ()  # tabular text without a header: names of the columns, in order
    p.null_values = ("",)  # tabular text: spellings of a missing value
    p.label = "label"  # column of the label, 0 or 1
    p.ftype = ""  # column of the interaction type; empty = untyped data
    p.types = ()  # names of the types; cti: follows from the columns
    p.row_id = ""  # column that identifies a row in predictions; empty = its position
    p.weight = ""  # column of sample weights
    p.gauc_key = ""  # column whose values group the rows for GAUC (usually the user)
    p.ignore = ()  # columns that are left out on purpose
    p.groups = ()  # ((group, members), ...): members are a name, a range "C1-C26", or a list of these
    p.slot = ConfigDict()  # what every slot is, unless `slots` says otherwise
    p.slot.kind = "categorical"  # categorical | multi (a bag) | numeric
    p.slot.encoding = (
        "vocabulary"  # vocabulary (counted) | hash | identity (integers 0 .. rows - 2)
    )
    p.slot.rows = 0  # table rows of a hashed or identity slot; vocabulary: follows from the data
    p.slot.min_count = 1  # vocabulary: rarer values are unknown
    p.slot.max_length = 10  # multi: ids that are kept, the first ones
    p.slot.pooling = "mean"  # multi: mean | sum
    p.slot.separator = "^"  # multi: between the values of a text cell
    p.slot.transform = "none"  # numeric: none | log1p | standardize | bucket
    p.slot.share = ""  # slot whose table rows this one uses
    p.slots = ConfigDict()  # {slot: {field of `slot`: value}}: the exceptions
    p.synthetic = ConfigDict()  # format=synthetic (emofm_jax/data/synthetic/write.py)
    p.synthetic.rows = (400_000, 50_000, 50_000)  # of train, valid, test
    p.synthetic.num_types = 4  # T, interaction types; 0 = untyped
    p.synthetic.type_strength = 1.0  # how much the label's weights differ between the types
    p.synthetic.cross_strength = 1.0  # of interactions across groups
    p.synthetic.noise = (
        0.0  # standard deviation of noise on the label's logit, which no model can know
    )
    p.synthetic.drift = 0.0  # how far the test day's weights have moved, as a share of their size
    p.synthetic.new_id_rate = 0.0  # share of test ids that training never saw
    p.synthetic.unseen_type = ""  # type that training never shows
    p.synthetic.hash_rows = (
        0  # table rows of each slot that grows (users, ads, items, terms), by hash; 0 = one an id
    )
    p.synthetic.group_slots = ()  # slots that are written of user, scene, ad, session; () = all 7, of noise beyond them
    p.synthetic.seed = 0  # of the planted truth and of the rows

    # Shards -> batches.
    c.data = d = ConfigDict()
    d.dir = ""  # where the shards are
    d.batch_size = 4096  # rows of a training step, over all devices
    d.eval_batch_size = 4096  # rows of an evaluation step, over all devices
    d.shuffle = True  # rows in a new order each epoch; False = as they stand (time order)
    d.shuffle_rows = 1 << 18  # rows among which they are shuffled, after the row groups were
    d.prefetch = 4  # batches that are made ahead

    # The network. docs/model.md has the formulas, and which model takes which field.
    c.model = m = ConfigDict()
    m.name = (
        "hmm"  # wm | hm | hmm | lr | fm | deepfm | dnn | dcnv2 | edcn | final | finalmlp | destine
    )
    m.embedding_dim = 16  # D, width of a row of the embedding table
    m.init_scale = 0.01  # standard deviation of the embedding table at the start
    m.head_bias = (
        "rate"  # the logit at the start: rate (log-odds of the train split's, of each type) | zero
    )
    m.hidden = (512, 256, 128)  # wm, dnn, and the MLP of deepfm, dcnv2 and destine: widths
    m.stage1 = (256, 128)  # hm, hmm: widths of the tower of each group
    m.stage2 = (256, 128)  # hm, hmm: widths of the tower of each type
    m.am_hidden = (128, 64)  # widths of the auxiliary model
    m.activation = "relu"  # relu | gelu | silu | tanh | none
    m.norm = "none"  # in the towers: none | layer | batch
    m.dropout = 0.0  # rate, after each hidden layer
    m.mixer = ConfigDict()
    m.mixer.kind = "cross_attention"  # cross_attention | self_attention | graph | mlp | none
    m.mixer.stages = (1, 2)  # which stages of hmm have mixers: (), (1,), (2,), (1, 2)
    m.mixer.d_att = 64  # width of queries, keys and values, over all heads; graph: of its states
    m.mixer.num_heads = 4  # H, a divisor of d_att
    m.mixer.norm = "none"  # before queries, keys and values: none | layer
    m.type_predictors = "per_type"  # per_type | shared
    m.use_ftype = True  # False removes every use of the interaction type
    m.type_aware = (
        False  # True: a baseline gets a copy a type and the auxiliary model, as wm, hm, hmm have
    )
    m.drop_type = ""  # name of a type that gets no predictor
    m.am_weight = 1.0  # weight of the auxiliary model's loss
    m.am_joint = False  # True: that loss moves the embeddings too
    m.dcnv2 = ConfigDict()
    m.dcnv2.structure = (
        "parallel"  # cross | stacked (MLP after it) | parallel (MLP beside it) | both
    )
    m.dcnv2.num_layers = 3  # cross layers
    m.dcnv2.low_rank = 0  # rank of the experts of a cross layer; 0 = one full matrix
    m.dcnv2.num_experts = 4  # low_rank > 0: experts of a cross layer
    m.edcn = ConfigDict()
    m.edcn.num_layers = 3  # pairs of a cross and a deep layer
    m.edcn.bridge = "hadamard"  # hadamard | add | concat | attention
    m.edcn.temperature = 1.0  # of the gates' softmax
    m.edcn.residual = True  # cross layers add their input
    m.final = ConfigDict()
    m.final.block1 = (64, 64, 64)  # widths of the first block
    m.final.block2 = (64, 64, 64)  # widths of the second block; () = one block (1B)
    m.final.residual = "concat"  # concat (halves every width) | sum
    m.final.gate = False  # gates of the slots before the first block
    m.finalmlp = ConfigDict()
    m.finalmlp.mlp1 = (64, 64, 64)  # widths of the first stream
    m.finalmlp.mlp2 = (64, 64, 64)  # widths of the second stream
    m.finalmlp.num_heads = 1  # of the bilinear fusion; a divisor of the last widths
    m.finalmlp.selection = True  # gates on the features, one set a stream
    m.finalmlp.gate_hidden = (64,)  # widths of the gates' MLPs
    m.finalmlp.context1 = ()  # slots that the first stream's gates depend on; () = on none
    m.finalmlp.context2 = ()  # of the second stream
    m.destine = ConfigDict()
    m.destine.num_layers = 2  # attention layers
    m.destine.d_att = 64  # width of queries, keys and values, over all heads
    m.destine.num_heads = 2  # a divisor of d_att
    m.destine.residual = "each_layer"  # each_layer | last_layer | none
    m.destine.scale = False  # pairwise scores are divided by sqrt(d_att / num_heads)
    m.destine.relu = False  # on queries, keys and values
    m.destine.attention_dropout = 0.1  # rate, on the attention's shares
    m.destine.wide = True  # first-order weights beside it
    m.destine.deep = True  # an MLP (`hidden`) beside it

    # Parameters -> better parameters. One section for the embedding table, one for everything else.
    c.optim = o = ConfigDict()
    for key in ("embedding", "network"):
        o[key] = ConfigDict()
        o[key].name = "adam"  # adam | adamw | adagrad | sgd
        o[key].learning_rate = 1e-3  # before warm-up and schedule
        o[key].schedule = "constant"  # constant | cosine (to zero at the last step) | plateau
        o[key].warmup_steps = 0  # steps of linear rise from zero, before any schedule
        o[key].l2 = 0.0  # adds l2 * parameter to the gradient
        o[key].weight_decay = 0.0  # adamw: decoupled
        o[key].beta1 = 0.9  # adam, adamw
        o[key].beta2 = 0.999  # adam, adamw
        o[key].eps = 1e-8  # adam, adamw, adagrad
        o[key].momentum = 0.0  # sgd
        o[key].initial_accumulator = 0.1  # adagrad
    o.embedding.updates = (
        "lazy"  # lazy: rows of the batch move | dense: every row moves, every step
    )
    o.clip = "none"  # gradient norm: none | group (table and network apart) | global (together)
    o.clip_norm = 10.0  # the norm that is not exceeded

    # The loop.
    c.train = t = ConfigDict()
    t.epochs = 1  # passes over the train split
    t.max_steps = 0  # stops earlier; 0 = no
    t.eval_every_steps = 0  # evaluations of the validation split; 0 = at the end of each epoch
    t.monitor = ""  # auc | logloss | auc - logloss: keeps the best state; empty = keeps the last
    t.patience = 0  # evaluations without gain before the run stops; 0 = never
    t.min_delta = 1e-6  # what counts as a gain
    t.plateau_factor = (
        0.1  # schedule=plateau: learning rate times this, at an evaluation without gain
    )
    t.plateau_min = 1e-6  # schedule=plateau: smallest factor in all
    t.log_every_steps = 100  # steps of a line of log.jsonl, and of the progress bar's figures
    t.save_every_steps = 2000  # steps between checkpoints
    return c.lock()


def load(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
      UserError: the directory holds no run, or a config.json that this version does not understand.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{workdir}: holds no run (no config.json); name the --workdir of a trained run"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a config of this version ({error}); train again") from None


def from_dict(body: dict) -> ConfigDict:
    """The validated config that a JSON object holds; fields that it lacks have their defaults.

    Raises:
      KeyError, TypeError, AttributeError: it is not of this version.
      UserError: a value is out of range.
    """
    config = default()
    config.prepare.slots = body["prepare"].pop("slots")
    config.update_from_flattened_dict(renamed(flatten(body)))  # locked, but for the names of slots
    validate(config)
    return config


def renamed(flat: dict) -> dict:
    """{dotted path: value} with the names that fields have now."""
    return {_RENAMED.get(path, path): value for path, value in flat.items()}


def flatten(config, prefix: str = "") -> dict:
    """{dotted path: value}, tuples for lists."""
    flat = {}
    for key in config:
        value = config[key]
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _as_tuple(value)
    return flat


def difference(ours, theirs) -> dict:
    """{dotted path: (our value, their value)} where two configs differ; `...` where a side has no such field."""
    a, b = flatten(ours), flatten(theirs)
    return {
        k: (a.get(k, ...), b.get(k, ...))
        for k in sorted(a.keys() | b.keys())
        if a.get(k, ...) != b.get(k, ...)
    }


def _as_tuple(value):
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list | tuple) else value
