"""An S3 server on localhost: moto's, as a process of its own."""

import contextlib
import os
import re
import subprocess
import sys
import time

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}

# The experiment of what tests it and what attacks it: a small model; each sets its `p`, of raw rows.
EXPERIMENT = """
from emofm_jax import config


def get_config():
    c = config.default()
    c.name, c.model.name, c.compute_dtype = "mine", "fm", "float32"
    c.data.batch_size, c.data.shuffle_rows = 64, 256
    c.train.epochs, c.train.save_every_steps, c.train.log_every_steps = 2, 2, 1
    p = c.prepare
    p.label, p.split, p.shares = "click", "share", (0.6, 0.2, 0.2)
    {prepare}
    return c
"""


@contextlib.contextmanager
def serve(log):
    """Yields the address of a server with the bucket `bucket`, which the environment names.

    Args:
      log: file for what it prints.
    """
    code = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    with open(log, "w") as to:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=to)
    before = dict(os.environ)
    try:
        while not (found := re.search(r"http://127\S+", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": found[0]}
        from pyarrow import fs

        fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")[0].create_dir("bucket")
        yield found[0]
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.kill()
        process.wait()
