"""Compiling is most of a test's time: programs are kept on disk for the session, and compiled without optimizations."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="emofm_jax_cache_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # 0 tests what users run, in nearly twice the time
