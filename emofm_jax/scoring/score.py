"""Scores encoded rows with an exported model. Needs jax, numpy and flatbuffers, nothing else.

    score = load("DIR"); score({"user_id": np.array([17, 4], np.int32), ...})["p"]     signature.json says what goes in
    score.call(score.weights, features)                   for other JAX code: jit, reverse-mode grad; not vmap, not jvp
    python DIR/score.py features.npz scores.npz           one array per slot in, scores out
An id that is out of its slot's range makes the scores of its row NaN."""

import functools
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

FORMAT_VERSION = 1
FILES = {"model.stablehlo", "weights.safetensors", "signature.json", "schema.json"}


def load(directory, check=True):
    """Returns score(features), after verifying checksums and the worked example if `check`."""
    directory = Path(directory)
    signature = json.loads((directory / "signature.json").read_text())
    if (version := signature["format_version"]) > FORMAT_VERSION:
        raise ValueError(
            f"{directory}: format version {version}, this loader reads {FORMAT_VERSION}; use its score.py"
        )
    listed = dict(
        line.split("  ", 1)[::-1]
        for line in (directory / "checksums.sha256").read_text().splitlines()
    )
    for name in sorted(listed.keys() | FILES) if check else ():
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != listed.get(name):
            raise ValueError(f"{directory / name}: not the file that was exported; copy it again")
    weights, metadata = read_weights(directory / "weights.safetensors")
    if metadata["export"] != signature["export"]:
        raise ValueError(
            f"{directory}: weights.safetensors and signature.json are of two exports; copy both again"
        )
    program = export.deserialize(bytearray((directory / "model.stablehlo").read_bytes()))

    def call(weights, features):
        if wrong := set(features) ^ set(signature["inputs"]):
            raise ValueError(
                f"features: slots that are absent, or one too many: {sorted(wrong)}; see signature.json"
            )
        empty = next(iter(features.values())).shape[0] == 0  # a program takes one row at least
        features = {
            k: np.zeros((1, *x.shape[1:]), x.dtype) if empty else x for k, x in features.items()
        }
        try:
            scores = program.call(weights, features)
        except (NotImplementedError, TypeError) as error:
            if not any(
                word in str(error) for word in ("call_exported", "custom_vjp", "forward-mode")
            ):
                raise
            raise ValueError(
                "an exported program has no vmap and no jvp; give it a batch, or use jax.grad"
            ) from None
        return {k: x[:0] for k, x in scores.items()} if empty else scores

    score = functools.partial(jax.jit(call), weights)
    score.call, score.weights, score.signature = call, weights, signature
    example = signature["example"]
    features = {
        k: np.array(v, signature["inputs"][k]["dtype"]) for k, v in example["features"].items()
    }
    tolerance = 1e-5 if jax.default_backend() == "cpu" else 1e-2  # of products in fewer bits
    for name, found in score(features).items() if check else ():
        if not np.allclose(found, example["scores"][name], rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{directory}: its worked example gives another {name} here than when it was exported"
            )
    return score


def read_weights(path):
    """({name: array on the device}, metadata); the file is mapped, so that nothing is read twice."""
    raw = np.memmap(path, np.uint8, "r")
    size = int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8 : 8 + size]))
    metadata, body = header.pop("__metadata__", {}), raw[8 + size :]
    view = lambda x: (
        body[slice(*x["data_offsets"])]
        .view({"F32": "<f4", "I32": "<i4"}[x["dtype"]])
        .reshape(x["shape"])
    )
    return {name: jax.device_put(view(x)) for name, x in header.items()}, metadata


if __name__ == "__main__":
    source, target = sys.argv[1:] if len(sys.argv) == 3 else sys.exit(__doc__)
    try:
        scores = load(Path(__file__).parent)(dict(np.load(source)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    np.savez(target, **{name: np.asarray(x) for name, x in scores.items()})
    print(f"{len(scores['p']):,} rows scored; written: {target}")
