"""KuaiRand-Pure: was a short video clicked? 222,444 real impressions of 14 days; the app's page is the type.

    python -m emofm_jax.prepare --config=experiments/kuairand.py --config.prepare.source=DIR
    python -m emofm_jax.train --config=experiments/kuairand.py --workdir=runs/kuairand
"""

from emofm_jax import config

PROFILE = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
ITEM = (
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
    "duration_s",
)


def get_config(arg: str = "hmm"):
    name, typed = arg.removesuffix("_typed"), arg.endswith("_typed")
    c = config.default()
    c.name = "kuairand"
    c.prepare.source = "data/raw/kuairand_pure"
    c.prepare.ftype, c.prepare.types = "tab6", ("1", "0", "4", "2", "6", "other")
    c.prepare.groups = (
        ("user", ("user_id", *PROFILE, "onehot_feat0-onehot_feat17")),
        ("item", ITEM),
        ("context", ("hour", "weekday")),
    )
    c.prepare.ignore = ("tab", "date")
    c.prepare.slots = {
        "tag": {"kind": "multi", "separator": "^", "max_length": 4},
        "duration_s": {"kind": "numeric", "transform": "bucket"},
    }
    c.prepare.slot.min_count = 2
    c.prepare.gauc_key = "user_id"
    c.data.dir = "data/kuairand"
    c.data.batch_size = 4096

    c.model.name = name
    c.model.type_aware = typed
    c.model.hidden = (400, 400, 400)
    c.model.stage1 = (256,)
    c.model.stage2 = (256, 128)
    c.model.norm = "batch"
    c.model.dropout = 0.3
    c.optim.embedding.updates = "dense"
    c.optim.embedding.l2 = 0.01
    c.optim.embedding.schedule = c.optim.network.schedule = "plateau"
    c.train.epochs = 40
    c.train.patience = 2
    c.train.monitor = "auc"
    return c
