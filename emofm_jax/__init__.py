"""Click-through and conversion-rate prediction in JAX: EMOFM (arXiv 2310.04482) and its baselines.

The names below are looked up when they are first used, so that `import emofm_jax.data...` loads no
jax.
"""

import importlib

from emofm_jax import errors

errors.end_quietly()
__version__ = "0.1.0"

_HOMES = {
    "Schema": "emofm_jax.data.schema",
    "Scorer": "emofm_jax.scoring.scorer",
    "load_scorer": "emofm_jax.scoring.scorer",
    "make_model": "emofm_jax.models.build",
}
__all__ = ["Schema", "Scorer", "__version__", "load_scorer", "make_model"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'emofm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return __all__
