"""Tables cut by columns, by rows, by both: the same numbers as on one device, and exactly the
collectives that the layout needs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from memjax.core import channel, join, lookup, sharded, split
from memjax.core.sharding import (
  DEFAULT_RULES,
  batch_sharding,
  init,
  make_mesh,
  model_shardings,
  place,
  table_sharding,
)
from memjax.core.table_sharding import TableSharding
from memjax.parametric import PEER, MemoryPlus, value_pool
from memjax.transformer import LanguageModel, Stack
from pallas_kernels.embedding_bag import update_rows
from tests.core.collectives import expected, found, shapes

ROWS, DIM, BATCH, TIME, SLOTS = 16, 16, 8, 2, 3
NUMBERS = np.random.default_rng(0)
COLUMNS = {"columns": ("m",), "batch": ("d", "m")}
LAYOUTS = {
  "columns": (2, 4, COLUMNS),
  "columns-2": (1, 2, COLUMNS),
  "columns-4": (2, 2, {**COLUMNS, "batch": ("m", "d")}),
  "columns-1": (1, 1, COLUMNS),
  "columns-tensor": (2, 4, {"columns": ("m",), "batch": ("d",)}),
  "rows": (2, 4, {"rows": ("m",), "batch": ("d", "m")}),
  "rows-2": (1, 2, {"rows": ("m",), "batch": ("m",)}),
  "rows-tensor": (2, 4, {"rows": ("m",), "batch": ("d",)}),
  "rows-time": (2, 4, {"rows": ("m",), "batch": ("m",), "time": ("d",)}),
  "both": (2, 4, {"rows": ("d",), "columns": ("m",), "batch": ("m", "d")}),
  "both-4": (2, 2, {"rows": ("d",), "columns": ("m",), "batch": ("d", "m")}),
  "both-tensor": (2, 4, {"rows": ("d",), "columns": ("m",)}),
  "both-half": (2, 4, {"rows": ("d",), "columns": ("m",), "batch": ("m",)}),
  "columns-of-two-axes": (2, 4, {"columns": ("d", "m"), "batch": ("d", "m")}),
  "copies": (8, 1, {"batch": ("d",)}),
}


def mesh_of(data, memory):
  return make_mesh({"d": data, "m": memory}, jax.devices()[: data * memory])


def layout(name):
  data, memory, axes = LAYOUTS[name]
  return TableSharding(mesh_of(data, memory), **axes)


def normal(*shape):
  return NUMBERS.standard_normal(shape).astype(np.float32)


TABLE, WEIGHTS, VECTORS = normal(ROWS, DIM), normal(BATCH, TIME, SLOTS), normal(BATCH, TIME, DIM)
IDS = NUMBERS.integers(0, ROWS + 1, (BATCH, TIME, SLOTS)).astype(np.int32)  # ROWS is padding
GRADS = normal(BATCH, TIME, DIM), normal(BATCH, TIME, SLOTS)


def read(op, sharding, table, ids, factor, cotangent):
  """What a lookup returns, and the gradients of the table and of weights or vectors."""
  fn = functools.partial({"bag": lookup.bag, "dots": lookup.dots}[op], label="table")
  y, back = jax.vjp(lambda table, factor: fn(table, ids, factor, sharding=sharding), table, factor)
  return y, *back(cotangent)


def both(sharding, table, ids, weights, vectors, grads):
  return (
    read("bag", sharding, table, ids, weights, grads[0]),
    read("dots", sharding, table, ids, vectors, grads[1]),
  )


@functools.cache
def on_one_device():
  args = TABLE, IDS, WEIGHTS, VECTORS, GRADS
  return jax.device_get(jax.jit(functools.partial(both, None))(*args))


def spread(cut, *arrays):
  """Tokens on their devices."""
  return jax.device_put(arrays, NamedSharding(cut.mesh, cut.token_spec()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_lookups_and_their_gradients_equal_those_of_one_device(name):
  cut = layout(name)
  table = jax.device_put(TABLE, cut.sharding())
  ids, weights, vectors, *grads = spread(cut, IDS, WEIGHTS, VECTORS, *GRADS)
  got = jax.jit(functools.partial(both, cut))(table, ids, weights, vectors, tuple(grads))
  assert got[0][1].sharding.is_equivalent_to(cut.sharding(), 2)
  for one, many in zip(jax.tree.leaves(on_one_device()), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["columns", "rows-tensor", "both-half", "rows-time", "copies"])
def test_one_row_a_token_with_its_gradient(name):
  """As embeddings are read; an id outside of the table gives NaN, and no gradient."""
  cut, ids = layout(name), np.where(IDS[..., 0] == ROWS, -1, IDS[..., 0])
  ids[0, 0] = ROWS
  grad = np.where((ids < 0) | (ids >= ROWS), 0, 1)[..., None] * GRADS[0]

  @jax.jit
  def run(table, ids, grad):
    y, back = jax.vjp(lambda table: sharded.take(cut, table, ids), table)
    return y, *back(grad)

  y, of_table = run(jax.device_put(TABLE, cut.sharding()), *spread(cut, ids, grad))
  padded = np.concatenate([TABLE, np.full((1, DIM), np.nan, np.float32)])
  np.testing.assert_array_equal(y, padded[np.where(ids < 0, ROWS, ids)])
  want = np.zeros_like(padded)
  np.add.at(want, ids, grad)
  np.testing.assert_allclose(of_table, want[:ROWS], rtol=1e-5, atol=1e-6)
  assert of_table.sharding.is_equivalent_to(cut.sharding(), 2)


def compiled(cut, table_at=None, sharding=...):
  """A bag and its gradients."""
  table = jax.device_put(TABLE, table_at or cut.sharding())
  args = table, *spread(cut, IDS, WEIGHTS, GRADS[0])
  fn = functools.partial(read, "bag", cut if sharding is ... else sharding)
  return jax.jit(fn).lower(*args).compile()


def formula(cut):
  tokens = BATCH * TIME // cut.ways(cut.tokens)
  return expected(cut, tokens=tokens, slots=SLOTS, dim=DIM, table_rows=ROWS)


@pytest.mark.parametrize("name", ["columns", "rows", "both", "both-4", "rows-time", "copies"])
def test_a_bag_exchanges_what_the_formula_says(name):
  assert found(compiled(layout(name))) == formula(layout(name))


def test_a_layout_that_moves_the_table_is_found():
  """The check above can fail: a table that lies otherwise, and a lookup that does not know."""
  cut = layout("columns")
  rows = NamedSharding(cut.mesh, PartitionSpec("m", None))
  piece = TABLE.nbytes // 4
  for bad in (compiled(cut, table_at=rows), compiled(cut, sharding=None)):
    more = list(found(bad))
    for exchange in formula(cut):
      if exchange in more:
        more.remove(exchange)
    assert max(size for _, size in more) >= piece


def test_no_device_holds_whole_vectors_of_the_group():
  cut = layout("columns")
  group = cut.ways(cut.group) * BATCH * TIME // cut.ways(cut.tokens)
  largest = max(math.prod(size) for _, size in shapes(compiled(cut).as_text()))
  assert group * DIM // cut.ways(cut.columns) <= largest < group * DIM


@pytest.mark.parametrize("name", ["columns", "both-half"])
def test_taps_need_no_gradient_of_the_table(name):
  """Touched rows leave by the tap: nothing of the table's size is computed or summed."""
  cut = layout(name)
  table = jax.device_put(TABLE, cut.sharding())
  ids, weights, g = spread(cut, IDS, WEIGHTS, GRADS[0])

  def loss(weights, taps):
    with channel.collect(taps) as frame:
      y = lookup.bag(table, ids, weights, label="table", sharding=cut)
    return jnp.sum(jnp.sin(y) * g), frame.emitted["touch:table"]

  taps = {"touch:table": jnp.zeros((BATCH, TIME, DIM))}
  run = jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(weights, taps).compile()
  assert ("all-reduce", TABLE.nbytes // cut.ways(cut.rows + cut.columns)) not in found(run)
  (_, rows), touched = run(weights, taps)
  y = on_one_device()[0][0]
  np.testing.assert_allclose(rows["touch:table"], np.cos(y) * GRADS[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(touched["ids"], IDS)


def adagrad(sum_columns):
  """Row-wise Adagrad, and the squared norm of the merged gradient."""

  def update(squares, gradient, rows, live):
    gradient = jnp.where(live[:, None], gradient, 0)
    own = jnp.sum(jnp.square(gradient), axis=1)
    total = rows["sum"] + sum_columns(own) / DIM
    step = gradient / jnp.sqrt(total + 1e-3)[:, None]
    return squares + jnp.sum(own), {"table": rows["table"] - step, "sum": total}

  return update


@pytest.mark.parametrize(
  ("name", "layers"),
  [
    ("columns", 1), ("columns-tensor", 2), ("rows", 1), ("rows", 2), ("rows-tensor", 1),
    ("rows-time", 1), ("both", 2), ("both-half", 1),
  ],
)  # fmt: skip
def test_touched_rows_are_updated_where_they_lie(name, layers):
  """Those of `layers` tables in a stack, whose rows are counted through."""
  cut, shape = layout(name), (layers, ROWS // layers, DIM)
  arrays = {"table": TABLE, "sum": np.zeros(ROWS, np.float32)}
  flat = [a.reshape(-1, a.shape[-1]) for a in (IDS, WEIGHTS, GRADS[0])]
  alone = adagrad(lambda a: a)
  one = jax.jit(lambda *args: update_rows(*args, alone, jnp.float32(0), chunk=16))(*flat, arrays)
  at = {"table": cut.sharding(stack=1), "sum": cut.sharding(columns=False, stack=1)}
  stacked = {"table": TABLE.reshape(shape), "sum": np.zeros(shape[:2], np.float32)}

  @jax.jit
  def run(ids, weights, vectors, arrays):
    fn, start = adagrad(cut.sum_columns), jnp.float32(0)
    factors = ids, weights, vectors
    return sharded.update_rows(cut, *factors, arrays, fn, start, shape=shape, chunk=16)

  squares, many = run(*spread(cut, IDS, WEIGHTS, GRADS[0]), jax.device_put(stacked, at))
  np.testing.assert_allclose(squares, one[0], rtol=1e-5)
  for key, a in one[1].items():
    assert many[key].sharding.is_equivalent_to(at[key], many[key].ndim)
    np.testing.assert_allclose(many[key].reshape(a.shape), a, rtol=1e-5, atol=1e-5)
  untouched = np.setdiff1d(np.arange(ROWS), IDS)
  table = np.asarray(many["table"]).reshape(ROWS, DIM)
  np.testing.assert_array_equal(table[untouched], TABLE[untouched])


def test_a_touched_row_update_moves_touches_only():
  """Ids, weights and own columns of the vectors; nothing of the table's size."""
  cut = layout("columns")
  arrays = {"table": TABLE, "sum": np.zeros(ROWS, np.float32)}
  at = {"table": cut.sharding(), "sum": cut.sharding(columns=False)}

  def plain(carry, gradient, rows, live):
    return carry, {**rows, "table": rows["table"] - gradient}

  run = lambda *args: sharded.update_rows(cut, *args, plain, (), shape=TABLE.shape)  # noqa: E731
  args = *spread(cut, IDS, WEIGHTS, GRADS[0]), jax.device_put(arrays, at)
  moved = found(jax.jit(run).lower(*args).compile())
  tokens = BATCH * TIME
  slots, own = tokens * SLOTS * 4, tokens * DIM // 4 * 4
  everyone = [("all-gather", own), ("all-gather", slots), ("all-gather", slots)]
  assert moved == sorted([*everyone, ("all-to-all", tokens // 8 * DIM * 4)])


@pytest.mark.parametrize("name", ["columns", "rows", "both-half"])
def test_a_layer_of_stacked_tables_is_read_where_it_lies(name):
  cut = layout(name)
  stacked = jax.device_put(TABLE.reshape(2, ROWS // 2, DIM), cut.sharding(stack=1))
  ids, weights, vectors, *grads = spread(cut, IDS, WEIGHTS, VECTORS, *GRADS)
  args = stacked, ids, weights, vectors, tuple(grads)

  @jax.jit
  def run(table, ids, weights, vectors, grads):
    y, back = jax.vjp(lambda *a: sharded.bag(cut, a[0], ids, a[1]), table, weights)
    d, back_d = jax.vjp(lambda *a: sharded.dots(cut, a[0], ids, a[1]), table, vectors)
    return (y, *back(grads[0])), (d, *back_d(grads[1]))

  for one, many in zip(jax.tree.leaves(on_one_device()), jax.tree.leaves(run(*args)), strict=True):
    np.testing.assert_allclose(many.reshape(one.shape), one, rtol=1e-5, atol=1e-5)


# ---- models

NONE = dict.fromkeys(DEFAULT_RULES)
RULES = {
  "columns": ({"data": 2, "m": 4}, NONE | {"batch": ("data", "m"), "value": "m"}),
  "rows": ({"m": 4}, NONE | {"batch": "m", "rows": "m"}),
  "both": ({"r": 2, "c": 2, "d": 2}, NONE | {"batch": ("d", "r", "c"), "rows": "r", "value": "c"}),
  "two": ({"m": 2}, NONE | {"batch": "m", "value": "m"}),
  "default": ({"data": 2, "fsdp": 2, "model": 2}, DEFAULT_RULES),
}
N, WIDTH, KEYS = 64, 16, {"keys": 8, "heads": 2, "top_k": 3, "query_dim": 8}
TOKENS = NUMBERS.integers(0, 32, (BATCH, 5)).astype(np.int32)


def on(name):
  sizes, rules = RULES[name]
  return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]), rules


def language_model(values=None, **options):
  memory = functools.partial(MemoryPlus, values=values, **KEYS)
  pool = {values: functools.partial(value_pool, N, WIDTH)} if values else None
  body = functools.partial(Stack, pattern=(memory,), **options)
  return LanguageModel(32, WIDTH, body=body, shared=pool, rngs=nnx.Rngs(0))


MODELS = {
  "plain": language_model,
  "scan": functools.partial(language_model, repeats=2, remat="full"),
  "pool": functools.partial(language_model, "values", repeats=2),
}


def training(model, ids):
  """A compiled step of Adam, and its first arguments."""
  params, rest = split(model)
  optimizer = optax.adam(1e-2, eps=1e-4)  # of about the gradients' size, so that steps are smooth

  def step(params, state, ids):
    def loss(params):
      model = join(params, rest)
      logits, _ = model(ids[:, :-1], model.init_state(BATCH))
      return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  args = params, optimizer.init(params), ids
  return jax.jit(step).lower(*args).compile(), args


def trained(step, args, steps=3):
  *carry, ids = args
  losses = []
  for _ in range(steps):
    *carry, loss = step(*carry, ids)
    losses.append(loss)
  return *carry, losses


@functools.cache
def trained_on_one_device(kind):
  params, _, losses = trained(*training(jax.jit(MODELS[kind])(), TOKENS))
  return jax.device_get((params, losses))


def others(name, kind):
  return pytest.param(name, kind, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("rows", "plain"), ("both", "plain"), ("both", "pool"), others("columns", "plain"),
    others("columns", "scan"), others("columns", "pool"), others("rows", "scan"),
    others("rows", "pool"), others("both", "scan"), others("two", "plain"),
    others("default", "plain"),
  ],
)  # fmt: skip
def test_training_on_a_mesh_is_training_on_one_device(name, kind):
  mesh, rules = on(name)
  model = init(MODELS[kind], mesh, rules)
  step, args = training(model, jax.device_put(TOKENS, batch_sharding(mesh, rules)))
  params, state, losses = trained(step, args)
  want, want_losses = trained_on_one_device(kind)
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  for key, array in params.items():
    np.testing.assert_allclose(array, want[key], rtol=1e-5, atol=1e-5, err_msg=key)
  (table,) = [key for key in params if key.endswith(("values/table", "shared/values"))]
  for moment in (state[0].mu[table], state[0].nu[table]):
    assert moment.sharding.is_equivalent_to(args[0][table].sharding, moment.ndim)
  if kind == "plain" and name != "default":
    exchanges_of_a_step(step, args[0], table_sharding(mesh, rules))


def exchanges_of_a_step(step, params, cut):
  """Those of one bag; besides them gradients of what all devices hold are summed, and the loss."""
  tokens = BATCH * 4 // cut.ways(cut.tokens)
  bag = expected(cut, tokens=tokens, slots=6, dim=WIDTH, table_rows=N)
  copied = sum(a.nbytes for key, a in params.items() if not key.endswith("table"))

  def apart(exchanges):  # the compiler merges all-reduces
    sums = sum(size for kind, size in exchanges if kind == "all-reduce")
    return [e for e in exchanges if e[0] != "all-reduce"], sums

  moved, summed = apart(found(step))
  want_moved, want_summed = apart(bag)
  assert moved == want_moved
  assert summed == want_summed + copied + 4


@pytest.mark.parametrize("name", ["both", pytest.param("default", marks=pytest.mark.slow)])
def test_peer_on_a_mesh(name):
  """Both of its lookups, its search with heads cut, and gradients of keys and queries."""
  memory = PEER(WIDTH, **KEYS, query_norm="rms", rngs=nnx.Rngs(0))
  x = normal(BATCH, 2, WIDTH)

  def gradients(model):
    params, rest = split(model)

    def loss(params, x):
      model = join(params, rest)
      return jnp.mean(jnp.sin(model(x, model.init_state(BATCH))[0] * 9))

    return jax.jit(jax.value_and_grad(loss)), params

  run, params = gradients(memory)
  want = run(params, x)
  mesh, rules = on(name)
  run, params = gradients(place(memory, mesh, rules))
  got = run(params, jax.device_put(x, batch_sharding(mesh, rules)))
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["scan", pytest.param("pool", marks=pytest.mark.slow)])
def test_one_seed_gives_one_model_and_no_device_ever_holds_a_whole_table(kind):
  make = MODELS[kind]
  want = jax.tree.leaves(jax.device_get(jax.jit(make)()))
  layers = 2 if kind == "scan" else 1
  for name in ("columns", "rows", "both", "two"):
    mesh, rules = on(name)
    shardings = model_shardings(jax.eval_shape(make), mesh, rules)
    program = jax.jit(make, out_shardings=shardings).lower().compile()
    made = jax.tree.leaves(program())
    for a, b in zip(want, made, strict=True):
      np.testing.assert_array_equal(b, a)
    cut = table_sharding(mesh, rules)
    piece = layers * N * WIDTH // cut.ways(cut.rows + cut.columns)
    largest = max(a.addressable_shards[0].data.size for a in made)
    assert piece <= largest < N * WIDTH * layers
    assert max(math.prod(size) for _, size in shapes(program.as_text())) == largest
    held = sum(a.addressable_shards[0].data.nbytes for a in made)
    assert program.memory_analysis().output_size_in_bytes == pytest.approx(held, rel=0.1)
    assert found(program) == []


def test_init_is_place_without_the_whole():
  mesh, rules = on("both")
  made, placed = (
    fn(m, mesh, rules) for fn, m in ((init, language_model), (place, language_model()))
  )
  assert jax.tree.structure(made) == jax.tree.structure(placed)
  for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(placed), strict=True):
    assert a.sharding == b.sharding
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    ({"columns": ("m",), "dim": 6}, r"value_dim=6 is not divisible by m=4"),
    ({"rows": ("d", "m"), "table_rows": 12}, r"rows=12 is not divisible by d=2 \* m=4"),
    ({"rows": ("m",), "batch": ("d", "m"), "tokens": 6}, r"batch=6 is not divisible by d=2 \* m=4"),
    ({"time": ("m",)}, r"time=2 is not divisible by m=4"),
  ],
)
def test_what_does_not_divide_is_refused(axes, message):
  rows, dim, batch = (axes.pop(k, d) for k, d in (("table_rows", 16), ("dim", 8), ("tokens", 8)))
  cut = TableSharding(mesh_of(2, 4), **axes)
  ids = jnp.zeros((batch, TIME, SLOTS), jnp.int32)
  with pytest.raises(ValueError, match=message):
    lookup.bag(jnp.zeros((rows, dim)), ids, ids * 1.0, label="table", sharding=cut)


def test_tokens_cut_over_a_part_of_a_table_are_refused():
  with pytest.raises(ValueError, match="over a part of them"):
    TableSharding(mesh_of(2, 4), columns=("d", "m"), batch=("d",))


def test_without_a_mesh_nothing_changes():
  assert table_sharding(make_mesh({"model": 1}, jax.devices()[:1])) is None
  assert MemoryPlus(WIDTH, **KEYS, rngs=nnx.Rngs(0)).values.table_sharding is None
