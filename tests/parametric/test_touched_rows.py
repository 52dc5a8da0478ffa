"""Tables of PEER and UltraMem train by touched rows: their gradients are the dense ones."""

import functools

import jax
import numpy as np
from flax import nnx

from memjax.core import Stateless, split
from memjax.parametric import PEER, UltraMem
from memjax.training import language_model_loss, table_names
from memjax.training.tables import Touches, value_and_grad
from memjax.transformer import LanguageModel, Skip, Stack

peer = functools.partial(PEER, keys=4, heads=2, top_k=2, query_dim=4, query_norm="rms")
ultramem = functools.partial(UltraMem, keys=2, heads=2, top_k=2, query_dim=4, value_dim=4)


def test_touched_rows_are_the_dense_gradient():
  """In a scan over blocks of two layers with a memory beside them, some tokens padding."""
  pattern = (functools.partial(Skip, layers=(peer, peer), memory=ultramem, at=1),)
  body = functools.partial(Stack, pattern=pattern, repeats=2)
  model = LanguageModel(7, 4, body=body, rngs=nnx.Rngs(0))
  params, rest = split(model)
  ids = np.random.default_rng(0).integers(0, 7, (2, 2, 4)).astype(np.int32)
  valid = np.arange(4)[None] < np.array([[4], [2]])
  batch = {"inputs": ids[0], "targets": ids[1], "valid": valid}
  names = table_names(model)
  assert len(names) == 5

  def gradients(names):
    run = jax.jit(value_and_grad(language_model_loss(), names))
    return run(params, rest, Stateless(), batch, jax.random.key(1))

  (total, _), dense = gradients(())
  (same, _), grads = gradients(names)
  np.testing.assert_allclose(same, total, rtol=1e-6)
  for name, wanted in dense.items():
    got = grads[name]
    assert isinstance(got, Touches) == (name in names) and np.abs(wanted).max() > 0, name
    if name in names:
      got = got.merged().dense(got.rows).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6, err_msg=name)
