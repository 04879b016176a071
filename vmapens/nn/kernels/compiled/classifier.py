"""Logits, loss and their gradients from the last hidden state, of one variant. Twin: `nn.loss` under autograd."""

import numpy as np

from vmapens.nn.kernels.compiled.jit import jit
from vmapens.nn.kernels.compiled.matrix import multiply


@jit
def _binary(logits, y, d_logits):
    """Cross-entropy on the sigmoid, as PyTorch computes it: logarithms not below -100, and its gradient."""
    one, total = np.float32(1), 0.0
    for b in range(y.size):
        p = one / (one + np.exp(-logits[b, 0]))
        total += (y[b] - one) * _floored(np.log1p(-p)) - y[b] * _floored(np.log(p))
        spread = p * (one - p)
        d_logits[b, 0] = (p - y[b]) / max(spread, np.float32(1e-12)) * spread / np.float32(y.size)
    return total / y.size


@jit
def _floored(log):
    return np.float32(-100) if log < np.float32(-100) else log


@jit
def _multiclass(logits, y, classes, d_logits):
    """Cross-entropy on the softmax, and its gradient."""
    total = 0.0
    for b in range(y.size):
        largest = logits[b, 0]
        for k in range(1, classes):
            largest = max(largest, logits[b, k])
        scale = np.float32(0)
        for k in range(classes):
            d_logits[b, k] = np.exp(logits[b, k] - largest)
            scale += d_logits[b, k]
        total += np.log(scale) - (logits[b, y[b]] - largest)
        for k in range(classes):
            hit = np.float32(1) if k == y[b] else np.float32(0)
            d_logits[b, k] = (d_logits[b, k] / scale - hit) / np.float32(y.size)
    return total / y.size


@jit
def classify(hidden, weight, bias, y, binary, d_hidden, d_weight, d_bias):
    """Mean loss of a batch; its gradients are set.

    Args:
        hidden: Last states [Bp, Hp].
        weight: [C, H].
        bias: [C].
        y: Labels [B]: 0.0 or 1.0 if binary, else classes.
        binary: C = 1, cross-entropy on the sigmoid.
        d_hidden: [Bp, Hp].
        d_weight: [C, H].
        d_bias: [C].
    """
    C, H = weight.shape
    Bp, Hp = hidden.shape
    Cp = (C + 15) // 16 * 16
    padded = np.zeros((Cp, Hp), np.float32)
    padded[:C, :H] = weight
    turned = np.zeros((Hp, Cp), np.float32)
    turned[:] = padded.T
    logits, d_logits = np.empty((Bp, Cp), np.float32), np.zeros((Bp, Cp), np.float32)
    multiply(logits, hidden, turned, Hp, False)
    for b in range(y.size):
        for k in range(C):
            logits[b, k] += bias[k]
    loss = _binary(logits, y, d_logits) if binary else _multiclass(logits, y.astype(np.int64), C, d_logits)
    multiply(d_hidden, d_logits, padded, C, False)
    multiply(padded, d_logits.T, hidden, Bp, False)
    d_weight[:] = padded[:C, :H]
    for k in range(C):
        total = np.float32(0)
        for b in range(y.size):
            total += d_logits[b, k]
        d_bias[k] = total
    return np.float32(loss)
