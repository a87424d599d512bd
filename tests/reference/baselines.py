"""FM, DESTINE and EDCN in numpy loops, float64, from the formulas at the head of their files.

Imports nothing of the package. `params` is the tree of a model's parameters as numpy arrays; e is one array [B, S, D].
"""

import numpy as np

from tests.reference.emofm import softmax


def fm(e, first_order, bias):
    """b + sum of the first-order weights [B, S] + every pair of slots once -> logits [B]."""
    logits = np.zeros(len(e))
    for b in range(len(e)):
        logits[b] = bias + first_order[b].sum()
        for s in range(e.shape[1]):
            for r in range(s + 1, e.shape[1]):
                logits[b] += e[b, s] @ e[b, r]
    return logits


def destine(params, e, first_order, *, num_layers, num_heads, residual, scale, relu):
    """Attention, wide and deep part (one hidden layer) -> logits [B]."""
    logits = np.zeros(len(e))
    for b in range(len(e)):
        x = e[b]
        for i in range(num_layers):
            x = _disentangled(
                params, f"attention_{i}", x, num_heads, scale, relu, residual == "each_layer"
            )
        if residual == "last_layer":
            x = x + _named(params, "residual", e[b])
        mlp = params["mlp"]["hidden_0"]
        hidden = np.maximum(e[b].ravel() @ mlp["kernel"][0] + mlp["bias"][0], 0)
        logits[b] = (
            _named(params, "out", x.ravel())[0]
            + _head(params["deep_head"], hidden)
            + first_order[b].sum()
        )
    return logits


def _disentangled(params, name, x, num_heads, scale, relu, add_input):
    """One layer: x [S, d] -> [S, d_att]."""
    q, k, v = (_named(params, f"{name}_{part}", x) for part in ("query", "key", "value"))
    if relu:
        q, k, v = (np.maximum(y, 0) for y in (q, k, v))
    unary = _named(params, f"{name}_unary", x)  # [S, H]
    slots, d_head = len(x), q.shape[1] // num_heads
    out = np.zeros_like(v)
    for head in range(num_heads):
        at = slice(head * d_head, (head + 1) * d_head)
        mean_q, mean_k = q[:, at].mean(axis=0), k[:, at].mean(axis=0)
        of_slot = softmax(unary[:, head])
        for i in range(slots):
            scores = np.array([(q[i, at] - mean_q) @ (k[j, at] - mean_k) for j in range(slots)])
            pairwise = softmax(scores / np.sqrt(d_head) if scale else scores)
            for j in range(slots):
                out[i, at] += (pairwise[j] + of_slot[j]) * v[j, at]
    return out + _named(params, f"{name}_residual", x) if add_input else out


def edcn(params, e, *, num_layers, bridge, temperature, residual):
    """Regulation, cross and deep layer, bridge, `num_layers` times -> logits [B]."""
    batch, slots, dim = e.shape
    logits, first = np.zeros(batch), None
    for b in range(batch):
        z = e[b].ravel()
        for i in range(num_layers):
            gates = [softmax(g / temperature) for g in params[f"regulation_{i}_gates"]]
            c, h = (
                np.concatenate([g[s] * z[s * dim : (s + 1) * dim] for s in range(slots)])
                for g in gates
            )
            first = c if i == 0 else first
            crossed = first * (params[f"cross_{i}"]["kernel"][:, 0] @ c) + params[f"cross_{i}_bias"]
            c = crossed + c if residual else crossed
            layer = params[f"deep_{i}"]["hidden_0"]
            h = np.maximum(h @ layer["kernel"][0] + layer["bias"][0], 0)
            if bridge == "attention":
                z = sum(
                    softmax(
                        np.maximum(_dense(params[f"{name}_hidden"], x), 0)
                        @ params[f"{name}_scores"]["kernel"]
                    )
                    * x
                    for name, x in ((f"bridge_{i}_cross", c), (f"bridge_{i}_deep", h))
                )
            else:
                z = {"hadamard": c * h, "add": c + h}[bridge]
        logits[b] = _head(params["head"], np.concatenate([c, h, z]))
    return logits


def _dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def _named(params, name, x):
    return x @ params[f"{name}_kernel"] + params.get(f"{name}_bias", 0.0)


def _head(layer, x):
    return x @ layer["kernel"][:, 0] + layer["bias"]
