"""Members of a plain MLP in numpy, from the formulas (docs/model.md, section 9)."""

import numpy as np


def mlp(layers, head, x):
    """logit [B] of an MLP with ReLU; a layer is (kernel, bias, r, s): ((x * r) K) * s + b."""
    for kernel, bias, r, s in layers:
        x = np.maximum(((x * r) @ kernel) * s + bias, 0.0)
    kernel, bias = head
    return x @ kernel[:, 0] + bias


def averaged(logits):
    """(p, logit, p_std), each [B], of logits [k, B]."""
    sigmoid = lambda z: 1.0 / (1.0 + np.exp(-z))
    of_members = sigmoid(logits)
    logit = logits.sum(axis=0) / len(logits)
    variance = ((of_members - of_members.mean(axis=0)) ** 2).sum(axis=0) / len(logits)
    return sigmoid(logit), logit, np.sqrt(variance)
