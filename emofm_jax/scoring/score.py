"""Scores encoded rows with an exported model. Needs jax, numpy and flatbuffers, nothing else.

    score = load("DIR")                            signature.json says what goes in
    score({"user_id": np.array([17, 4], np.int32), ...})["p"]
    score.call(score.weights, features)            for JAX code: jit and grad, no vmap, no jvp
    python DIR/score.py features.npz scores.npz    one array per slot in, scores out

An id that is out of its slot's range makes the scores of its row NaN.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

FORMAT_VERSION = 1
FILES = {"model.stablehlo", "weights.safetensors", "signature.json", "schema.json"}
DTYPES = {"F32": "<f4", "I32": "<i4"}


def load(directory, check=True):
    """Returns score(features), after verifying checksums and the worked example if `check`."""
    directory = Path(directory)
    signature = json.loads((directory / "signature.json").read_text())
    if (version := signature["format_version"]) > FORMAT_VERSION:
        known = f"this loader reads {FORMAT_VERSION}; use its score.py"
        raise ValueError(f"{directory}: format version {version}, {known}")
    if check:
        check_files(directory)
    weights, metadata = read_weights(directory / "weights.safetensors")
    if metadata["export"] != signature["export"]:
        files = "weights.safetensors and signature.json"
        raise ValueError(f"{directory}: {files} are of two exports; copy both again")

    program = export.deserialize(bytearray((directory / "model.stablehlo").read_bytes()))
    call = functools.partial(call_program, program, signature["inputs"].keys())
    score: Any = functools.partial(jax.jit(call), weights)
    score.call, score.weights, score.signature = call, weights, signature
    if check:
        check_example(directory, score)
    return score


def call_program(program, slots, weights, features):
    """Returns the scores; a program takes one row at least, so for no rows it gets one."""
    if wrong := slots ^ features.keys():
        which = f"absent, or one too many: {sorted(wrong)}"
        raise ValueError(f"features: slots that are {which}; see signature.json")
    empty = next(iter(features.values())).shape[:1] == (0,)
    if empty:
        features = {name: np.zeros((1, *x.shape[1:]), x.dtype) for name, x in features.items()}

    try:
        scores = program.call(weights, features)
    except (NotImplementedError, TypeError) as error:
        # What jax says of vmap and of jvp; there is no type of its own.
        if not any(x in str(error) for x in ("call_exported", "custom_vjp", "forward-mode")):
            raise
        text = "an exported program has no vmap and no jvp; give it a batch, or use jax.grad"
        raise ValueError(text) from None
    return {name: x[:0] for name, x in scores.items()} if empty else scores


def check_files(directory):
    """Raises a ValueError that names a file whose checksum is another."""
    lines = (directory / "checksums.sha256").read_text().splitlines()
    listed = dict(line.split("  ", 1)[::-1] for line in lines)
    for name in sorted(listed.keys() | FILES):
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != listed.get(name):
            raise ValueError(f"{directory / name}: not the file that was exported; copy it again")


def check_example(directory, score):
    """Raises a ValueError where the worked example gives other scores."""
    inputs, example = score.signature["inputs"], score.signature["example"]
    features = {k: np.array(x, inputs[k]["dtype"]) for k, x in example["features"].items()}
    tolerance = 1e-5 if jax.default_backend() == "cpu" else 1e-2  # of products in fewer bits
    for name, found in score(features).items():
        if not np.allclose(found, example["scores"][name], rtol=tolerance, atol=tolerance):
            text = f"its worked example gives another {name} here than when it was exported"
            raise ValueError(f"{directory}: {text}")


def read_weights(path):
    """Returns {name: array on the device} and the metadata; the file is mapped, not read twice."""
    raw = np.memmap(path, np.uint8, "r")
    size = int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8 : 8 + size]))
    metadata, body = header.pop("__metadata__", {}), raw[8 + size :]
    array = lambda x: body[slice(*x["data_offsets"])].view(DTYPES[x["dtype"]]).reshape(x["shape"])
    return {name: jax.device_put(array(x)) for name, x in header.items()}, metadata


if __name__ == "__main__":
    source, target = sys.argv[1:] if len(sys.argv) == 3 else sys.exit(__doc__)
    try:
        scores = load(Path(__file__).parent)(dict(np.load(source)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    np.savez(target, **jax.device_get(scores))
    print(f"{len(scores['p']):,} rows scored; written: {target}")
