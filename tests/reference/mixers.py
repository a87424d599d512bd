"""Mixers in numpy loops, float64, one row of one token at a time, from the formulas in docs/model.md, section 4.

Imports nothing of the package. tokens is [B, n, d], `params` the tree of a mixer's parameters as numpy arrays; what
stands in which array is written in the docstrings of the mixers. Each function returns [B, n, d], residual included.
"""

import math

import numpy as np

from tests.reference.emofm import mixer as attend_to_others
from tests.reference.emofm import sigmoid, softmax


def cross_attention(tokens, params, num_heads):
    w_q, w_k, w_v = np.split(params["query_key_value"], 3, axis=-1)
    return attend_to_others(tokens, w_q, w_k, w_v, params["out"], num_heads)


def self_attention(tokens, params, num_heads):
    """Every token sees every token, itself too."""
    out, (_, n, _) = tokens.copy(), tokens.shape
    d_att = params["out"].shape[1]
    for b, row in enumerate(tokens):
        queries, keys, values = (
            np.array(
                [
                    row[i] @ params["query_key_value"][i][:, part * d_att : (part + 1) * d_att]
                    for i in range(n)
                ]
            )
            for part in range(3)
        )
        for i in range(n):
            for head in np.split(np.arange(d_att), num_heads):
                shares = softmax(keys[:, head] @ queries[i, head] / math.sqrt(len(head)))
                out[b, i] += (shares @ values[:, head]) @ params["out"][i][head]
    return out


def graph(tokens, params, num_steps=2):
    out, (_, n, _) = tokens.copy(), tokens.shape
    d_att = params["out"].shape[1]
    edge, gru = params["edge"][:, 0], params["gru"]
    message_z, message_r, message_c = np.split(gru["message"], 3, axis=1)
    gate_z, gate_r = np.split(gru["gates"], 2, axis=1)
    bias_z, bias_r, bias_c = np.split(gru["bias"], 3)
    for b, row in enumerate(tokens):
        first = [row[i] @ params["state"][i] for i in range(n)]
        weight = np.zeros((n, n))
        for i in range(n):
            others = [j for j in range(n) if j != i]
            scores = [edge[:d_att] @ first[i] + edge[d_att:] @ first[j] for j in others]
            weight[i, others] = softmax(np.array([s if s > 0 else 0.01 * s for s in scores]))
        states = list(first)
        for _ in range(num_steps):
            before = list(states)
            for i in range(n):
                a = params["message_bias"].copy()
                for j in range(n):
                    a += weight[i, j] * (before[j] @ params["send"][j] @ params["receive"][i])
                z = sigmoid(a @ message_z + before[i] @ gate_z + bias_z)
                r = sigmoid(a @ message_r + before[i] @ gate_r + bias_r)
                c = np.tanh(a @ message_c + (r * before[i]) @ gru["candidate"] + bias_c)
                states[i] = (1 - z) * before[i] + z * c + first[i]
        for i in range(n):
            out[b, i] += states[i] @ params["out"][i]
    return out


def mlp(tokens, params):
    out, (_, n, d) = tokens.copy(), tokens.shape
    for b, row in enumerate(tokens):
        for channel in range(d):
            hidden = []
            for k, bias in enumerate(params["hidden_bias"]):
                x = sum(params["hidden"][j, k] * row[j, channel] for j in range(n)) + bias
                hidden.append(
                    0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
                )
            for i in range(n):
                out[b, i, channel] += params["out"][i] @ np.array(hidden) + params["out_bias"][i]
    return out


def layer_norm(tokens, params):
    mean, var = tokens.mean(axis=-1, keepdims=True), tokens.var(axis=-1, keepdims=True)
    return (tokens - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
