"""The paper's own format: raw rows of the CTI competition (EMOFM, arXiv 2310.04482).

    python -m emofm_jax.prepare --config=experiments/cti.py --config.prepare.source=DIR
    python -m emofm_jax.train --config=experiments/cti.py --workdir=runs/cti

DIR holds train.tsv, valid.tsv and test.tsv with rows `log_id t1 t2 t3 features`, between tabs.
With the real data, set the four lists of slot ids below.

The default is the hand-made sample of 200 rows, which shows that everything runs and teaches a
model nothing. The competition's data are not public, so there is no result here.
"""

from emofm_jax import config

USER = "101-104"
SCENE = "201-203"
AD = "301-304"
SESSION = ("401", "402")  # each a bag: the slot may repeat in a row


def get_config(arg=""):
    c = config.recommended()
    c.name = "cti"
    c.prepare.format = "cti"
    c.prepare.source = "data/examples/cti"
    c.prepare.groups = (("user", USER), ("scene", SCENE), ("ad", AD), ("session", SESSION))
    c.prepare.slots = {slot: {"kind": "multi", "max_length": 20} for slot in SESSION}
    c.prepare.gauc_key = "101"
    c.data.dir = "data/cti"
    return c
