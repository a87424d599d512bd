"""Logistic regression on looked-up embeddings, trained with loops in float64: what the sparse step must equal.

    logit_b = bias + sum_s <kernel_s, e_bs>,   e_bs = sum over the columns c of slot s of value_bc table[ids_bc]

Written from the formulas of the optimizers and of docs/model.md; imports nothing of the package.
"""

import numpy as np


def gradients(table, kernel, bias, ids, value, widths, label, weight):
    """Of sum_b weight_b BCE(logit_b, label_b) / sum_b weight_b.

    Args:
      table: f64[V, D]. kernel: f64[S, D]. bias: float. ids: i32[B, N], V = padding. value: f64[B, N] or None.
      widths: columns of each slot. label, weight: f64[B].

    Returns:
      loss; {table row: f64[D]} for the rows that occur; f64[S, D]; float; p f64[B].
    """
    by_row, g_kernel, g_bias, loss, p = {}, np.zeros_like(kernel), 0.0, 0.0, np.zeros(len(label))
    total = weight.sum() if weight.sum() > 0 else 1.0
    for b in range(len(label)):
        e, slot_of = np.zeros_like(kernel), np.repeat(np.arange(len(widths)), widths)
        for c, row in enumerate(ids[b]):
            if row < len(table):
                e[slot_of[c]] += (1.0 if value is None else value[b, c]) * table[row]
        logit = bias + (kernel * e).sum()
        p[b] = 1.0 / (1.0 + np.exp(-logit))
        loss -= weight[b] / total * (label[b] * np.log(p[b]) + (1 - label[b]) * np.log(1 - p[b]))
        d = weight[b] / total * (p[b] - label[b])
        g_bias += d
        g_kernel += d * e
        for c, row in enumerate(ids[b]):
            if row < len(table):
                v = 1.0 if value is None else value[b, c]
                by_row[int(row)] = by_row.get(int(row), 0.0) + d * v * kernel[slot_of[c]]
    return loss, by_row, g_kernel, g_bias, p


def move(section, parameter, gradient, memory, t):
    """One update of one array by an optimizer, `memory` (a dict, empty at the start) changed in place; t from 0."""
    name, rate = section["name"], section["learning_rate"]
    if name == "sgd":
        memory["trace"] = gradient + section["momentum"] * memory.get("trace", 0.0)
        return parameter - rate * memory["trace"]
    if name == "adagrad":
        memory["sum"] = memory.get("sum", section["initial_accumulator"]) + gradient**2
        return parameter - rate * gradient / np.sqrt(memory["sum"] + section["eps"])
    if name == "rowwise_adagrad":
        mean = (gradient**2).mean(axis=1, keepdims=True)
        memory["sum"] = memory.get("sum", section["initial_accumulator"]) + mean
        return parameter - rate * gradient / np.sqrt(memory["sum"] + section["eps"])
    b1, b2 = section["beta1"], section["beta2"]
    memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * gradient
    memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * gradient**2
    m, v = memory["m"] / (1 - b1 ** (t + 1)), memory["v"] / (1 - b2 ** (t + 1))
    decay = section["weight_decay"] * parameter if name == "adamw" else 0.0
    return parameter - rate * (m / (np.sqrt(v) + section["eps"]) + decay)


def train(table, kernel, bias, batches, widths, optim, *, clip="none", clip_norm=1.0, dense=False):
    """Steps over `batches`, a list of (ids, value, label, weight).

    Args:
      optim: {"embedding": section, "network": section} with config.optim's fields, l2 among them.
      dense: every row moves, L2 covers the whole table and is clipped; else the rows of the batch alone, L2 after.

    Returns:
      table, kernel, bias, and per step {"loss", "embedding_norm", "network_norm", "num_rows", "p"}.
    """
    table, kernel = table.astype(np.float64), kernel.astype(np.float64)
    row_memory = [{} for _ in table]
    kernel_memory, bias_memory, records = {}, {}, []
    for t, (ids, value, label, weight) in enumerate(batches):
        loss, by_row, g_kernel, g_bias, p = gradients(
            table, kernel, bias, ids, value, widths, label, weight
        )
        num_rows, l2 = len(by_row), optim["embedding"]["l2"]
        if dense:
            by_row = {
                r: by_row.get(r, np.zeros(table.shape[1])) + l2 * table[r]
                for r in range(len(table))
            }
        g_kernel, g_bias = (
            g_kernel + optim["network"]["l2"] * kernel,
            g_bias + optim["network"]["l2"] * bias,
        )
        norm_e = np.sqrt(sum((g**2).sum() for g in by_row.values()))
        norm_n = np.sqrt((g_kernel**2).sum() + g_bias**2)
        both = np.sqrt(norm_e**2 + norm_n**2)
        against = {"none": (0.0, 0.0), "group": (norm_e, norm_n), "global": (both, both)}[clip]
        f_e, f_n = (min(1.0, clip_norm / norm) if norm else 1.0 for norm in against)
        for r, g in by_row.items():
            g = f_e * g + (0.0 if dense else l2 * table[r])
            table[r] = move(optim["embedding"], table[r], g, row_memory[r], t)
        kernel = move(optim["network"], kernel, f_n * g_kernel, kernel_memory, t)
        bias = move(optim["network"], bias, f_n * g_bias, bias_memory, t)
        records.append(
            {
                "loss": loss,
                "embedding_norm": norm_e,
                "network_norm": norm_n,
                "num_rows": num_rows,
                "p": p,
            }
        )
    return table, kernel, bias, records
