"""Random choices of fixed shape, for one example; tasks map them over a batch."""

import jax
import jax.numpy as jnp

ROUNDS = 4
FEW = 256  # numbers that are sorted rather than permuted


def distinct(key: jax.Array, n: int, k: int) -> jax.Array:
  """k different numbers of 0..n - 1, `[k] int32`, in random order, in O(k) for large n.

  Large n take the first k that `permuted` gives; on few numbers it would not reach every order.
  """
  if not 0 <= k <= n:
    raise ValueError(f"k={k} must lie in 0..n={n}")
  if n <= max(FEW, 4 * k):
    return jnp.argsort(jax.random.bits(key, (n,), jnp.uint32))[:k].astype(jnp.int32)
  return _feistel(key, n, jnp.arange(k))


def permuted(key: jax.Array, n: int, x: jax.Array) -> jax.Array:
  """Where a permutation of 0..n - 1 puts `x [...]`, int32 and below n (another would be walked on
  for ever), without the others. Of few numbers not every order is reached."""
  return _feistel(key, n, x)


def _feistel(key: jax.Array, n: int, x: jax.Array) -> jax.Array:
  half = max(1, ((n - 1).bit_length() + 1) // 2)
  keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)
  low = jnp.uint32(2**half - 1)

  def permute(x):
    left, right = x >> half, x & low
    for round_key in keys:
      left, right = right, left ^ (mix(right ^ round_key) & low)
    return (left << half) | right

  def walk(x):
    return jnp.where(x < n, x, permute(x))

  first = permute(x.astype(jnp.uint32))
  found = jax.lax.while_loop(lambda x: jnp.any(x >= n), walk, first)
  return found.astype(jnp.int32)


def skipping(drawn: jax.Array, taken: jax.Array) -> jax.Array:
  """Numbers of 0..n - len(taken) - 1 moved past those that are taken `[k]`, sorted: of 0..n - 1."""
  gaps = taken - jnp.arange(len(taken))  # how many free numbers stand before each
  return (drawn + jnp.searchsorted(gaps, drawn, side="right")).astype(jnp.int32)


def mix(x: jax.Array) -> jax.Array:
  """A uint32, every bit of which depends on all bits of the given one (Murmur 3's last step)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def bits(key: jax.Array, n: int, width: int) -> jax.Array:
  """n vectors of `width` fair bits, `[n, width] float32` of 0 and 1."""
  words = jax.random.bits(key, (n, -(-width // 32)), jnp.uint32)
  return unpack(words, 32).reshape(n, -1)[:, :width]


def unpack(numbers: jax.Array, width: int) -> jax.Array:
  """The lowest `width` bits of whole numbers `[...]`, `[..., width] float32`, the least first."""
  places = jnp.arange(width, dtype=numbers.dtype).reshape((1,) * numbers.ndim + (width,))
  return ((numbers[..., None] >> places) & 1).astype(jnp.float32)


def weighted(key: jax.Array, log_weights: jax.Array, k: int) -> jax.Array:
  """k different places of `log_weights [n]`, one after another in proportion to the weights of
  those that are left (Plackett and Luce), `[k] int32`."""
  noisy = log_weights + jax.random.gumbel(key, log_weights.shape)
  return jax.lax.top_k(noisy, k)[1].astype(jnp.int32)


def crowded(key: jax.Array, space: int, power: float, count: int) -> jax.Array:
  """`count` different places of 0..space - 1, drawn in proportion to (place + 1)^(power - 1)."""
  weights = (power - 1) * jnp.log(jnp.arange(1, space + 1, dtype=jnp.float32))
  return weighted(key, weights, count)


def spots(key: jax.Array, n: int, k: int) -> jax.Array:
  """k different numbers of 0..n - 1 in increasing order, `[k] int32`."""
  return jnp.sort(distinct(key, n, k))


def without_repeats(key: jax.Array, counts: jax.Array, length: int, tries: int = 8) -> jax.Array:
  """An order of `counts [K]` events of K kinds in which none follows one of its own, `[length]`.

  The next is drawn among those that are left and of another kind than the last. A draw that ends
  with only that kind left is drawn again; after `tries` of them the order may hold a repeat at its
  end.

  Args:
    length: the sum of the counts.
  """

  def order(key):
    noise = jax.random.gumbel(key, (length, counts.shape[0]))

    def step(carry, noise):
      left, last = carry
      kinds = jnp.arange(left.shape[0])
      weight = jnp.log(left.astype(jnp.float32))  # -inf: none left
      free = jnp.where(kinds == last, -jnp.inf, weight)
      stuck = jnp.all(jnp.isneginf(free))
      kind = jnp.argmax(jnp.where(stuck, weight, free) + noise)
      return (left.at[kind].add(-1), kind), (kind, stuck)

    _, (kinds, stuck) = jax.lax.scan(step, (counts, jnp.int32(-1)), noise)
    return kinds.astype(jnp.int32), jnp.any(stuck)

  def again(carry):
    number, _, _ = carry
    return (number + 1, *order(jax.random.fold_in(key, number)))

  first = (1, *order(jax.random.fold_in(key, 0)))
  return jax.lax.while_loop(lambda c: c[2] & (c[0] < tries), again, first)[1]


def rounds(key: jax.Array, kinds: int, start: jax.Array | int, count: int) -> jax.Array:
  """The rounds start .. start + count - 1 of an endless row of them, `[count, kinds] int32`. Each
  holds every kind once, in random order, and no kind follows itself.

  A round that would begin with the last kind of the one before begins with its own second one.

  Raises:
    ValueError: fewer than 3 kinds.
  """
  if kinds < 3:
    raise ValueError(f"kinds={kinds} must be at least 3")
  numbers = start + jnp.arange(count + 1) - 1
  order = lambda r: distinct(jax.random.fold_in(key, r), kinds, kinds)  # noqa: E731
  drawn = jax.vmap(order)(numbers)
  here = drawn[1:]
  swapped = here.at[:, :2].set(here[:, 1::-1])
  repeats = here[:, 0] == drawn[:-1, -1]
  return jnp.where(repeats[:, None], swapped, here)
