"""WM, HM, HMM, the mixer, AM, the mixture and the loss in numpy loops, float64, from the formulas in docs/model.md.

Imports nothing of the package. `params` is the tree of a model's parameters as numpy arrays; what stands in which
array is written in the docstrings of the layers.
"""

import numpy as np


def pool(table, ids, value, slot_widths):
    """table [V, D], ids [B, N], value [B, N] -> e [B, S, D], one occurrence after the other."""
    num_rows, dim = table.shape
    e = np.zeros((len(ids), len(slot_widths), dim))
    for b in range(len(ids)):
        column = 0
        for s, width in enumerate(slot_widths):
            for _ in range(width):
                if 0 <= ids[b, column] < num_rows:
                    e[b, s] += value[b, column] * table[ids[b, column]]
                column += 1
    return e


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    exp = np.exp(x - x.max())
    return exp / exp.sum()


def mixer(tokens, w_q, w_k, w_v, w_o, num_heads):
    """u_i + sum over j != i, head by head. tokens [B, n, d], weights [n, d, d_att], w_o [n, d_att, d] -> [B, n, d]."""
    batch, n, _ = tokens.shape
    d_att = w_q.shape[-1]
    d_head = d_att // num_heads
    out = tokens.copy()
    for b in range(batch):
        for i in range(n):
            query = tokens[b, i] @ w_q[i]
            summed = np.zeros(d_att)
            others = [j for j in range(n) if j != i]
            for head in range(num_heads):
                at = slice(head * d_head, (head + 1) * d_head)
                keys = [(tokens[b, j] @ w_k[j])[at] for j in others]
                values = [(tokens[b, j] @ w_v[j])[at] for j in others]
                shares = softmax(
                    np.array([query[at] @ key for key in keys]) / np.sqrt(d_att / num_heads)
                )
                summed[at] = sum(share * v for share, v in zip(shares, values))
            out[b, i] += summed @ w_o[i]
    return out


def tower(first, params, num_heads, name_of_layer="hidden"):
    """ReLU and mixer (if `params` has one) after each layer. first [B, n, d], before its activation."""
    tokens, i = first, 0
    while True:
        tokens = np.maximum(tokens, 0)
        if f"mixer_{i}" in params:
            fused, out = params[f"mixer_{i}"]["query_key_value"], params[f"mixer_{i}"]["out"]
            w_q, w_k, w_v = np.split(fused, 3, axis=-1)
            tokens = mixer(tokens, w_q, w_k, w_v, out, num_heads)
        i += 1
        if f"{name_of_layer}_{i}" not in params:
            return tokens
        layer = params[f"{name_of_layer}_{i}"]
        n = tokens.shape[1]
        # With one set of weights for all tokens (shared predictor), every token uses it.
        pick = [min(t, len(layer["kernel"]) - 1) for t in range(n)]
        tokens = np.stack(
            [tokens[:, t] @ layer["kernel"][pick[t]] + layer["bias"][pick[t]] for t in range(n)],
            axis=1,
        )


def network(params, e, group_sizes=None, num_heads=4):
    """Logits of the predictors that there are, [B, predictors] ([B, 1] if untyped).

    `group_sizes` given: HM or HMM; else WM.
    """
    batch, _, dim = e.shape
    if group_sizes is None:
        x, second = e.reshape(batch, -1), params["tower"]
    else:
        first, start = [], 0
        for g, size in enumerate(group_sizes):
            kernel = params["group_dense"]["kernel"][start * dim : (start + size) * dim]
            x_g = e[:, start : start + size].reshape(batch, -1)
            first.append(x_g @ kernel + params["group_dense"]["bias"][g])
            start += size
        h = tower(np.stack(first, axis=1), params["stage1"], num_heads)
        x, second = (
            np.concatenate([h[:, g] for g in range(len(group_sizes))], axis=1),
            params["stage2"],
        )
    layer = params["type_dense"]
    if "type_embedding" in layer:
        first = []
        for t, embedding in enumerate(layer["type_embedding"]):
            pick = min(t, len(layer["kernel"]) - 1)
            with_type = np.concatenate([x, np.tile(embedding, (batch, 1))], axis=1)
            first.append(with_type @ layer["kernel"][pick] + layer["bias"][pick])
        first = np.stack(first, axis=1)
    else:
        first = (x @ layer["dense"]["kernel"][0] + layer["dense"]["bias"][0])[:, None]
    z = tower(first, second, num_heads)
    head, n = params["head"], z.shape[1]
    pick = [min(t, len(head["kernel"]) - 1) for t in range(n)]
    return np.stack(
        [z[:, t] @ head["kernel"][pick[t], :, 0] + head["bias"][pick[t]] for t in range(n)], axis=1
    )


def auxiliary(params, e):
    """p_AM(t | x) [B, T]."""
    x = e.reshape(len(e), -1)
    mlp = params["mlp"]
    first = x @ mlp["hidden_0"]["kernel"][0] + mlp["hidden_0"]["bias"][0]
    h = tower(first[:, None], mlp["tower"], 1)[:, 0]
    return np.array([softmax(row) for row in h @ params["head"]["kernel"] + params["head"]["bias"]])


def mixture(p_given_type, p_type, drop_type=-1):
    """p(y | x) [B] and p_type [B, T] renormalised over the types that have a predictor."""
    p_type = p_type.copy()
    if drop_type >= 0:
        p_type[:, drop_type] = 0
        p_type = p_type / p_type.sum(axis=1, keepdims=True)
    p = np.zeros(len(p_type))
    for t in range(p_type.shape[1]):
        if t != drop_type:
            p += p_type[:, t] * p_given_type[:, t]
    return p, p_type


def loss(p_given_type, p_type, label, ftype, weight, am_weight, drop_type=-1, keep_rate=1.0):
    """L, row by row. p_given_type and p_type [B, T]; a row of weight 0 is skipped.

    Of rows without a click a share `keep_rate` was kept, and their weights were divided by it: L_ctr
    is of the weights before that, and of the probability of a click among the rows that were kept.
    """
    p_mixture, _ = mixture(p_given_type, p_type, drop_type)
    ctr = am = ctr_weight = am_total = 0.0
    for b in range(len(label)):
        if weight[b] == 0:
            continue
        if ftype[b] != drop_type or ftype[b] < 0:
            p = p_mixture[b] if ftype[b] < 0 else p_given_type[b, ftype[b]]
            p = p / (p + keep_rate * (1 - p))  # Bayes: a click is kept for certain
            own = weight[b] if label[b] == 1 else weight[b] * keep_rate
            ctr -= own * np.log(p if label[b] == 1 else 1 - p)
            ctr_weight += own
        if ftype[b] >= 0:
            am -= weight[b] * np.log(p_type[b, ftype[b]])
            am_total += weight[b]
    return ctr / (ctr_weight or 1.0) + am_weight * am / (am_total or 1.0)
