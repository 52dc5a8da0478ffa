"""Gradients of plain NumPy functions, exact to rounding, for golden arrays.

`Im f(x + ih) / h` is the derivative of an analytic function (Squire and Trapp 1998), without the
cancellation of a difference. What is not analytic compares real parts only: `relu` here.
"""

import numpy as np

STEP = 1e-30


def relu(x):
  return np.where(x.real > 0, x, 0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  e = np.exp(x - x.real.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, scale, bias, eps=1e-5):
  x = x - x.mean(axis=-1, keepdims=True)
  return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale + bias


def gradients(loss, arrays: dict) -> dict:
  """The gradient of `loss(arrays)`, a number, for each array of a flat dictionary."""
  arrays = {name: np.asarray(a, np.complex128) for name, a in arrays.items()}
  found = {}
  for name, array in arrays.items():
    grad = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
      moved = array.copy()
      moved[index] += 1j * STEP
      grad[index] = loss(arrays | {name: moved}).imag / STEP
    found[name] = grad
  return found
