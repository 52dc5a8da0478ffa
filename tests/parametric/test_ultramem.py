"""UltraMem: specs/parametric.md section 4, against plain numpy of its equations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Stateless, channel, flatten, join, split, unflatten
from memjax.parametric import TuckerKeys, UltraMem, refresh_singular_vectors
from memjax.training import LossOutput, init_train_state, make_train_step
from memjax.transformer import Stack

SIZES = {"keys": 6, "heads": 2, "top_k": 3, "query_dim": 4, "value_dim": 4}


def make(dim=5, seed=0, **sizes):
  return UltraMem(dim, **{**SIZES, **sizes}, rngs=nnx.Rngs(seed))


def activations(batch=2, length=5, dim=5, seed=1):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, dim)), jnp.float32)


@jax.jit
def call(memory, x):
  """The output and what was emitted."""
  with channel.collect() as frame:
    y, _ = memory(x, Stateless())
  return y, frame.emitted


@jax.jit
def search(keys, x):
  return keys(x)


def rms(a, scale):
  return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(scale[...])


def sides(keys: TuckerKeys, x):
  """R and S of every key: `[T, H, n', r]`, by numpy."""
  x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  q = rms((x @ np.asarray(keys.query.kernel[...])).reshape(len(x), 2, -1), keys.query_norm.scale)
  k = rms(np.asarray(keys.keys[...], np.float64), keys.key_norm.scale)
  return (np.einsum("tc,hanc->thna", q[:, s], k[:, s]) for s in (0, 1))


def pairs(keys: TuckerKeys, x):
  """G of every pair and channel, `[T, H, n', n', C]`."""
  rows, columns = sides(keys, x)
  return np.einsum("thia,hcab,thjb->thijc", rows, np.asarray(keys.core[...]), columns)


def chosen(keys, x):
  """What the layer found, by head: slots `[T, H, k]`, scores `[T, H, k, C]`."""
  slots, scores = (np.asarray(a) for a in search(keys, x))
  heads, channels = keys.core.shape[:2]
  slots = slots.reshape(-1, heads, keys.top_k)
  return slots, np.moveaxis(scores.reshape(len(slots), channels, heads, -1), 1, -1)


def test_rank_one_with_a_core_of_one_multiplies_the_halves():
  """Among the k best rows and columns the k best products (not sums), and these are the scores."""
  keys, x = make(rank=1, channels=1, expansion=1).search, activations()
  keys.core[...] = jnp.ones((2, 1, 1, 1))
  rows, columns = (a[..., 0] for a in sides(keys, x))
  u, v = np.asarray(keys.left[...])[None], np.asarray(keys.right[...])[None]
  best = [np.argsort(-side * sign)[..., :3] for side, sign in ((rows, u), (columns, v))]
  slots, scores = chosen(keys, x)
  for t, h in np.ndindex(slots.shape[:2]):
    products = {
      i * 6 + j: rows[t, h, i] * columns[t, h, j] for i in best[0][t, h] for j in best[1][t, h]
    }
    want = sorted(products, key=lambda slot: -products[slot])[:3]
    np.testing.assert_array_equal(slots[t, h], want)
    np.testing.assert_allclose(scores[t, h, :, 0], [products[s] for s in want], rtol=1e-4)


def test_a_core_of_rank_one_is_searched_exactly():
  """Where the k best of all pairs whose sides are both positive have positive sides to spare."""
  keys, x = make(keys=16, expansion=1).search, activations(4, 16)
  left, right = np.array([[0.9, 0.4], [0.3, 0.8]]), np.array([[0.7, 0.6], [0.2, 1.0]])
  whole = np.einsum("ha,hb->hab", left, right)
  part = np.random.default_rng(0).normal(size=whole.shape)
  keys.core[...] = jnp.asarray(np.stack([whole - part, part], axis=1), jnp.float32)
  params, rest = split(keys)
  keys = join(params, refresh_singular_vectors(params, rest))
  rows, columns = sides(keys, x)
  first = np.einsum("thia,ha->thi", rows, np.asarray(keys.left[...]))
  second = np.einsum("thja,ha->thj", columns, np.asarray(keys.right[...]))
  total = pairs(keys, x).sum(-1)
  slots, scores = chosen(keys, x)
  checked = 0
  for t, h in np.ndindex(slots.shape[:2]):
    up = (first[t, h] > 0, second[t, h] > 0)
    if min(up[0].sum(), up[1].sum()) < 3:
      continue
    allowed = np.where(up[0][:, None] & up[1][None], total[t, h], -np.inf).ravel()
    want = np.argsort(-allowed)[:3]
    np.testing.assert_array_equal(slots[t, h], want)
    np.testing.assert_allclose(scores[t, h].sum(-1), allowed[want], rtol=1e-3, atol=1e-4)
    checked += 1
  assert checked > 100


def test_scores_of_what_is_found_are_the_channels_of_the_core():
  keys, x = make().search, activations()
  slots, scores = chosen(keys, x)
  every = pairs(keys, x).reshape(10, 2, 144, 2)
  want = np.take_along_axis(every, slots[..., None], axis=2)
  np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-5)


def test_stage_two_picks_by_the_sum_over_channels():
  keys, x = make(top_k=12).search, activations()  # all 12 rows and columns
  slots, _ = chosen(keys, x)
  total = pairs(keys, x).sum(-1).reshape(10, 2, 144)
  np.testing.assert_array_equal(slots, np.argsort(-total)[..., :12])


def expected(memory, x):
  """The output from what was found, one read at a time."""
  slots, scores = chosen(memory.search, x)
  place = np.asarray(memory.permutation[...])[slots]
  row, group = place % memory.rows, place // memory.rows
  table = np.asarray(memory.table[...]).reshape(memory.rows, memory.channels, -1)
  acc = np.zeros((len(slots), memory.expansion, *table.shape[1:]))
  for t, h, j in np.ndindex(slots.shape):
    acc[t, group[t, h, j]] += scores[t, h, j][:, None] * table[row[t, h, j]]
  return (acc.reshape(len(slots), -1) @ np.asarray(memory.out.kernel[...])).reshape(
    *x.shape[:2], -1
  )


@pytest.mark.parametrize("expansion", [1, 4])
def test_reads_of_each_group_and_channel_stay_apart(expansion):
  memory, x = make(expansion=expansion), activations()
  memory.table[...] = memory.table[...] * 50
  np.testing.assert_allclose(call(memory, x)[0], expected(memory, x), rtol=1e-4, atol=1e-5)


def test_with_identities_stacked_as_projection_groups_only_share_rows():
  """The sum over groups: as one group in which slot s reads row permutation[s] mod N."""
  memory, x = make(4, value_dim=4), activations(dim=4)
  memory.out.kernel[...] = jnp.tile(jnp.eye(4), (4, 1))
  want = call(memory, x)[0]
  memory.permutation[...] = memory.permutation[...] % 36
  got = call(memory, x)[0]
  assert jnp.abs(want).max() > 1e-4
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_every_row_is_reached_once_from_each_group():
  place = np.sort(make().permutation[...])
  np.testing.assert_array_equal(place, np.arange(4 * 36))


def objective(params, vectors, rest, x):
  rest = dataclasses.replace(rest, arrays=rest.arrays | vectors)
  return jnp.sum(jnp.sin(50 * call(join(params, rest), x)[0]))


def test_singular_vectors_take_no_gradient_and_the_core_does():
  """All others match finite differences along the gradient, where no other slot is chosen."""
  params, rest = split(make())
  x = activations()
  vectors = {name: rest.arrays[name] for name in ("search/left", "search/right")}
  run = jax.jit(jax.value_and_grad(functools.partial(objective, rest=rest, x=x), (0, 1)))
  _, (grads, none) = run(params, vectors)
  for grad in none.values():
    np.testing.assert_array_equal(grad, 0)
  for name, grad in grads.items():
    length = jnp.linalg.norm(grad)
    assert length > 1e-4, name
    step = 1e-3 * grad / length
    ahead, behind = (run({**params, name: params[name] + s}, vectors)[0] for s in (step, -step))
    np.testing.assert_allclose(ahead - behind, 2e-3 * length, rtol=5e-2, err_msg=name)


def test_the_sign_of_the_singular_vectors_is_kept():
  """Whatever sign the decomposition gives: the one nearer to the last."""
  params, rest = split(make())
  for sign in (1, -1):
    rest.arrays.update({name: sign * rest.arrays[name] for name in ("search/left", "search/right")})
    moved = {**params, "search/core": params["search/core"] + 0.05}
    fresh = refresh_singular_vectors(moved, rest).arrays
    u, v = fresh["search/left"], fresh["search/right"]
    near = jnp.sum(u * rest.arrays["search/left"] + v * rest.arrays["search/right"], -1)
    assert (near > 1.5).all()
    total = np.asarray(moved["search/core"]).sum(1)
    largest = np.linalg.svd(total)[1][:, 0]
    np.testing.assert_allclose(np.einsum("ha,hab,hb->h", u, total, v), largest, rtol=1e-5)
    assert jnp.abs(u - rest.arrays["search/left"]).max() > 1e-4


@pytest.mark.parametrize("stacked", [False, True])
def test_a_training_step_recomputes_them(stacked):
  """After the update of the core, layer by layer; a bad step leaves them as they were."""
  factory = functools.partial(UltraMem, **SIZES)
  model = Stack(5, pattern=(factory,), repeats=2, rngs=nnx.Rngs(0)) if stacked else make()
  optimizer = optax.sgd(0.5)

  def loss(model, memory, batch, key):
    y = model(batch, model.init_state(2))[0]
    return LossOutput(1000 * jnp.sum(jnp.square(y - 1)), jnp.float32(10), memory)

  home = "layers/0+1x2/memory/search/" if stacked else "search/"
  step = make_train_step(loss, optimizer)
  state = init_train_state(model, optimizer, key=jax.random.key(0))
  before = np.asarray(state.rest.arrays[f"{home}left"])
  state, _ = step(state, activations())
  core = np.asarray(state.params[f"{home}core"]).sum(-3)
  left, right = (np.asarray(state.rest.arrays[home + name]) for name in ("left", "right"))
  assert np.abs(left - before).max() > 1e-4
  largest = np.linalg.svd(core)[1][..., 0]
  np.testing.assert_allclose(
    np.einsum("...a,...ab,...b->...", left, core, right), largest, rtol=1e-4
  )
  state, metrics = step(state, activations() * jnp.nan)
  assert not metrics["finite"]
  np.testing.assert_array_equal(state.rest.arrays[f"{home}left"], left)


def test_checkpoints_hold_the_sign_and_the_permutation():
  memory, other, x = make(), make(seed=1), activations()
  for name in ("left", "right"):
    vectors = getattr(memory.search, name)
    vectors[...] = -vectors[...]
  again = unflatten(other, flatten(memory))
  np.testing.assert_array_equal(call(again, x)[0], call(memory, x)[0])


def test_the_penalty_counts_singular_values_but_the_first():
  x = activations()
  assert "singular_loss" not in call(make(), x)[1]
  memory = make(penalty=0.5)
  values = np.linalg.svd(np.asarray(memory.search.core[...]).sum(1))[1][:, 1:]
  want = 0.5 * np.mean(np.maximum(values - 0.15, 0) ** 2)
  np.testing.assert_allclose(call(memory, x)[1]["singular_loss"], want, rtol=1e-4)


def test_what_it_emits_names_rows_and_the_slices_of_the_table():
  _, emitted = call(make(), activations())
  assert emitted["ids"].shape == emitted["weights"].shape == (2, 5, 6)
  assert emitted["ids"].max() < 36 and emitted["weights"].min() >= 0
  touched = np.asarray(emitted["touch:table"]["ids"])
  real = touched[touched < 72]
  assert touched.max() == 72 and real.size == 2 * emitted["ids"].size  # 2 slices a read
  np.testing.assert_array_equal(np.unique(real // 2), np.unique(emitted["ids"]))


def test_initialisation():
  """Scales dk^-0.33, keys and Wq Normal(0, dk^-1/2), V Normal(0, 0.02), core U(0, 1)."""
  memory = make(64, keys=16, query_dim=16, value_dim=32)
  keys = memory.search
  for norm in (keys.query_norm, keys.key_norm):
    np.testing.assert_allclose(norm.scale[...], 16**-0.33, rtol=1e-6)
  quarter, out = (keys.keys, keys.query.kernel), memory.out.kernel
  for arrays, deviation in ((quarter, 0.25), ((memory.table,), 0.02), ((out,), 128**-0.5)):
    for array in arrays:
      np.testing.assert_allclose(array[...].std(), deviation, rtol=0.05)
  assert 0 <= keys.core[...].min() < 0.3 and 0.7 < keys.core[...].max() <= 1
  assert memory.table.shape == (256 * 2, 16) and keys.keys.shape == (2, 2, 2, 32, 16)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"expansion": 2}, "expansion=2 must be the square of an integer: 1 or 4"),
    ({"channels": 3}, "channels=3 does not divide value_dim=4"),
    ({"top_k": 13}, "top_k=13 exceeds the 12 keys"),
    ({"penalty": -1.0}, "penalty=-1.0"),
    ({"rank": 0}, "rank=0"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
