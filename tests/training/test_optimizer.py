"""Two groups of parameters: rates, clips and decay of one do not touch the other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import split
from memjax.training import decayed_names, make_optimizer, table_names, warmup_decay
from tests.training.tiny import tiny


def gradients(scale: float = 1.0, seed: int = 0):
  params = split(tiny())[0]
  rng = np.random.default_rng(seed)
  grads = {name: jnp.array(rng.normal(size=a.shape), a.dtype) for name, a in params.items()}
  grads["table"] *= scale
  return params, grads


def updates(optimizer, params, grads, steps: int = 2):
  state = optimizer.init(params)
  for _ in range(steps):
    update, state = optimizer.update(grads, state, params)
  return update


@pytest.mark.parametrize(
  ("decay", "rates"),
  [
    ("cosine", [0.5, 1, 1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 - 0.5 * np.cos(np.pi / 4), 0]),
    ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
    ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
  ],
)
def test_warm_up_and_decay(decay, rates):
  schedule = warmup_decay(0.2, steps=6, warmup=2, decay=decay)
  np.testing.assert_allclose([schedule(n) for n in range(7)], 0.2 * np.array(rates), atol=1e-8)


def test_the_end_of_the_decay_and_no_warm_up():
  schedule = warmup_decay(1.0, steps=4, decay="linear", final=0.5)
  np.testing.assert_allclose([schedule(n) for n in (0, 2, 4, 9)], [1, 0.75, 0.5, 0.5])


@pytest.mark.parametrize(
  "arguments", [{"decay": "cubic"}, {"warmup": 6}, {"warmup": -1}, {"final": 2.0}]
)
def test_schedules_check_their_arguments(arguments):
  with pytest.raises(ValueError, match=next(iter(arguments))):
    warmup_decay(1.0, steps=6, **arguments)


def test_names():
  assert table_names(tiny()) == {"table"}
  # The kernel has rank 2 in each layer; the scale would have it stacked, and must not count.
  assert decayed_names(tiny()) == {"cells/0+1x2/kernel", "table"}


def test_gradients_of_tables_change_no_other_update():
  """With one global norm, a table's large gradient starves the rest."""
  optimizer = make_optimizer(tiny(), learning_rate=0.1, clip=0.5, table_clip=0.5)
  params, grads = gradients()
  _, large = gradients(1e6)
  small, large = updates(optimizer, params, grads), updates(optimizer, params, large)
  assert not jnp.array_equal(small["table"], 0)
  for name in set(params) - {"table"}:
    assert jnp.array_equal(small[name], large[name])


def test_each_group_is_adamw_of_its_own():
  """Against optax's AdamW on each group alone, with the mask spelled out."""
  params, grads = gradients(30.0)
  optimizer = make_optimizer(
    tiny(), learning_rate=0.1, table_learning_rate=0.7, weight_decay=0.2, clip=0.5, table_clip=0.9
  )
  got = updates(optimizer, params, grads)
  for group, rate, clip, decayed in (
    (["table"], 0.7, 0.9, []),
    (["cells/0+1x2/kernel", "cells/0+1x2/scale"], 0.1, 0.5, ["cells/0+1x2/kernel"]),
  ):
    alone = optax.chain(
      optax.clip_by_global_norm(clip),
      optax.adamw(rate, b2=0.95, weight_decay=0.2, mask={name: name in decayed for name in group}),
    )
    part = lambda tree: {name: tree[name] for name in group}  # noqa: B023, E731
    wanted = updates(alone, part(params), part(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), part(got), wanted)


def test_tables_decay_on_request_and_are_not_clipped_by_default():
  params, grads = gradients()
  zeros = jax.tree.map(jnp.zeros_like, grads)
  kept = updates(make_optimizer(tiny(), learning_rate=0.1), params, zeros)
  shrunk = updates(make_optimizer(tiny(), learning_rate=0.1, decay_tables=True), params, zeros)
  assert not kept["table"].any()
  np.testing.assert_allclose(shrunk["table"], -0.1 * 0.1 * params["table"], rtol=1e-6)
  assert not shrunk["cells/0+1x2/scale"].any()


def test_frozen_parameters_stand_outside():
  freeze = lambda name: name == "table"  # noqa: E731
  params = split(tiny(), freeze)[0]
  optimizer = make_optimizer(tiny(), learning_rate=0.1, freeze=freeze)
  assert set(updates(optimizer, params, params)) == set(params) == set(split(tiny())[0]) - {"table"}


def test_schedules_count_the_updates():
  model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  optimizer = make_optimizer(
    model, learning_rate=warmup_decay(1.0, steps=9, warmup=4), weight_decay=0.0, clip=None
  )
  params = split(model)[0]
  grads = jax.tree.map(jnp.ones_like, params)
  one, two = updates(optimizer, params, grads, 1), updates(optimizer, params, grads, 2)
  np.testing.assert_allclose(one["kernel"], -0.25, rtol=1e-5)
  np.testing.assert_allclose(two["kernel"], -0.5, rtol=1e-5)
