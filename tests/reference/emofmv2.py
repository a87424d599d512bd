"""EMOFMv2 in numpy loops, float64, from the formulas in docs/model.md. Imports nothing of the package."""

import numpy as np

from tests.reference import emofm


def credibility(rows, pool_rows):
    return [n / (n + pool_rows) for n in rows]


def network(params, e, dim, group_sizes, c):
    """Logits of both parts [2, B, T], T = 1 if untyped (`c` is empty). e [B, S, D + 1 + types]."""
    batch = len(e)
    logits = np.zeros((2, batch, max(len(c), 1)))
    for b in range(batch):
        x, columns = e[b, :, :dim], e[b, :, dim:]
        z = np.concatenate([*_towers(params, x, group_sizes), _cross(params, x.reshape(-1))])
        logits[0, b] = _pooled(params, z, c) if c else _plain(params, z)
        for t in range(logits.shape[2]):
            logits[1, b, t] = params["wide_bias"][t]
            for s in range(len(x)):
                own = 0.3 * c[t] * columns[s, 1 + t] if c else 0
                logits[1, b, t] += 5 * (columns[s, 0] + own)
    return logits


def _towers(params, x, group_sizes):
    first, start = [], 0
    dim = x.shape[1]
    for g, size in enumerate(group_sizes):
        kernel = params["group_dense"]["kernel"][start * dim : (start + size) * dim]
        x_g = x[start : start + size].reshape(-1)
        first.append(x_g @ kernel + params["group_dense"]["bias"][g])
        start += size
    return emofm.tower(np.array(first)[None], params["stage1"], 1)[0]


def _cross(params, x_0):
    x = x_0
    for i in range(sum(name.startswith("cross_down") for name in params)):
        low = np.array([x @ column for column in params[f"cross_down_{i}"]["kernel"].T])
        full = np.array([low @ column for column in params[f"cross_{i}"]["kernel"].T])
        x = x_0 * (full + params[f"cross_{i}"]["bias"]) + x
    return x


def _pooled(params, z, c):
    layers, i = params["stage2"], 0
    if "hidden_0" in layers:
        z = np.maximum(z @ layers["hidden_0"]["kernel"][0] + layers["hidden_0"]["bias"][0], 0)
        assert not layers.get("tower")
    head = params["head"]
    shared = z @ head["dense"]["kernel"][0] + head["dense"]["bias"][0]
    rank, logits = head["own_up"].shape[1], []
    for t, share in enumerate(c):
        low = z @ head["own_down"][:, t * rank : (t + 1) * rank]
        y = np.maximum(shared + share * (low @ head["own_up"][t] + head["own_bias"][t]), 0)
        kernel = head["kernel"][:, 0] + share * head["own_kernel"][t, :, 0]
        logits.append(y @ kernel + head["bias"][t])
    return logits


def _plain(params, z):
    first = z @ params["dense"]["kernel"][0] + params["dense"]["bias"][0]
    y = emofm.tower(first[None, None], params["stage2"], 1)[0, 0]
    return [y @ params["head"]["kernel"][0, :, 0] + params["head"]["bias"][0]]
