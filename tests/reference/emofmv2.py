"""EMOFMv2 in numpy loops, float64, from the formulas in docs/model.md. Imports nothing of the package."""

import numpy as np

from tests.reference import emofm


def network(params, e, dim, group_sizes, types):
    """Logits of both parts [2, B, T], T = 1 if untyped (0 `types`). e [B, S, D + 1 + types]."""
    batch = len(e)
    logits = np.zeros((2, batch, max(types, 1)))
    for b in range(batch):
        x, columns = e[b, :, :dim], e[b, :, dim:]
        crossed = _cross(params, x.reshape(-1))
        z = np.concatenate([*_towers(params, x, group_sizes), crossed])
        logits[0, b] = _pooled(params, z, crossed)
        for t in range(logits.shape[2]):
            logits[1, b, t] = params["wide_bias"][t]
            for s in range(len(x)):
                own = 0.3 * columns[s, 1 + t] if types else 0
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


def _pooled(params, z, crossed):
    first = z @ params["stage2"]["hidden_0"]["kernel"][0] + params["stage2"]["hidden_0"]["bias"][0]
    y = emofm.tower(first[None, None], params["stage2"].get("tower", {}), 1)[0, 0]
    y, head = np.concatenate([y, crossed]), params["head"]
    return [
        sum(y[i] * (head["kernel"][i, 0] + head["own_kernel"][i, t]) for i in range(len(y)))
        + head["bias"][t]
        for t in range(len(head["bias"]))
    ]
