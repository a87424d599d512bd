"""Compiled programs are kept on the disk for the time of a test session: many tests build the same tiny model."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="emofm_jax_cache_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
