"""An experiment small enough for a test: `get_config("hm")`, its shards and runs beside it in the test's directory."""

from emofm_jax import config


def get_config(arg: str = "hmm"):
    c = config.default()
    c.name = "tiny"
    c.prepare.format = "synthetic"
    c.prepare.synthetic.rows = (4000, 1000, 1100)
    c.prepare.gauc_key = "user_id"
    c.data.dir = "data"
    c.data.batch_size = 256
    c.data.eval_batch_size = 512
    c.data.shuffle_rows = 1000
    c.model.name = arg
    c.model.embedding_dim = 4
    c.model.hidden = (16, 8)
    c.model.stage1 = (8,)
    c.model.stage2 = (8,)
    c.model.am_hidden = (8,)
    c.model.mixer.d_att = 8
    c.model.mixer.num_heads = 2
    c.optim.embedding.learning_rate = 0.02
    c.optim.network.learning_rate = 0.005
    c.train.log_every_steps = 5
    c.train.save_every_steps = 6
    return c
