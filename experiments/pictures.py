"""The pictures of docs/memories: small memories are trained, then watched on one sequence.

    python -m experiments.pictures [--only ntm_copy,elmur_corridor] [--into docs/images]

Each prints what its training reached. A minute or two each on two cores.
"""

import argparse
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from memjax import inspect
from memjax.core import join, split
from memjax.slots import (
  ELMUR,
  DifferentiableNeuralComputer,
  EndToEndMemoryNetwork,
  NeuralTuringMachine,
  PointerMixtureNetwork,
  pointer_targets,
)
from memjax.tasks import copying, corridor, repeat_copy, two_hop, unknown_words
from memjax.testing import train_small

CHUNK = 100  # steps in one compiled call


def train(model, loss: Callable, *, steps: int, rate, enough: Callable | None = None):
  """The model after Adam on `loss(model, key) -> (loss, measure)`, the last mean measure, steps.

  Args:
    model: any pytree; what `split` calls parameters is trained.
    rate: learning rate, or a schedule.   enough: of a measure; ends the training.
  """
  params, rest = split(model)
  optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate))
  of = lambda params, key: loss(join(params, rest), key)  # noqa: E731
  params, measure, done = train_small(
    params, of, optimizer, steps=steps, chunk=CHUNK, enough=enough
  )
  return join(params, rest), float(measure), done


def bits(sample: Callable) -> Callable:
  """Loss of a model of bits, and wrong bits of a sequence, where `sample(key)` draws 32."""

  def loss(model, key):
    copies = sample(key)
    logits, _ = model(copies.inputs, model.init_state(copies.inputs.shape[0]))
    each = optax.sigmoid_binary_cross_entropy(logits, copies.targets).sum(-1)
    return jnp.sum(each * copies.mask) / len(each), copying.wrong_bits(logits, copies).mean()

  return loss


# Each returns the figure, and what the training reached: wrong bits, or the share that is right.


def ntm_copy(steps: int = 8000):
  """What goes in, what is added, where it is written and read, what comes out."""
  ntm = NeuralTuringMachine(7, out=6, slots=24, width=12, hidden=48, rngs=nnx.Rngs(0))
  sample = lambda key: copying.sample(key, 32, longest=10, bits=6)  # noqa: E731
  rate = optax.cosine_decay_schedule(3e-3, steps)
  ntm, wrong, done = train(ntm, bits(sample), steps=steps, rate=rate, enough=lambda w: w < 0.005)
  print(f"ntm_copy: {wrong:.3f} wrong bits of 33 after {done} steps of 32 sequences")
  x = copying.sample(jax.random.key(1), 1, shortest=10, longest=10, bits=6).inputs
  trace = inspect.record(ntm, x)
  shown = {"input": x, "output": jax.nn.sigmoid(trace.output[0]), **trace}
  return inspect.figure(shown, ["input", "add", "written", "read", "output"]), wrong


def dnc_repeat_copy(steps: int = 3000):
  """Slots are filled as they become free, and read again along their links."""
  dnc = DifferentiableNeuralComputer(
    6, out=5, slots=8, width=8, read_heads=1, hidden=32, rngs=nnx.Rngs(0)
  )
  sample = lambda key: repeat_copy.sample(key, 32, longest=6, most=2)  # noqa: E731
  dnc, wrong, done = train(dnc, bits(sample), steps=steps, rate=1e-2, enough=lambda w: w < 0.05)
  print(f"dnc_repeat_copy: {wrong:.2f} wrong bits of 29 after {done} steps of 32 sequences")
  x = repeat_copy.sample(jax.random.key(1), 1, shortest=6, longest=6, fewest=2, most=2).inputs
  trace = inspect.record(dnc, x)
  shown = {"input": x, "output": jax.nn.sigmoid(trace.output[0]), **trace}
  names = ["input", "allocation_gate", "written", "usage", "read", "read_mode", "output", "link"]
  return inspect.figure(shown, names, at=7), wrong


def memn2n_hops(steps: int = 6000):
  """A story of eight sentences, and what each of two hops attends to."""
  world, length = two_hop.World(), 8
  net = EndToEndMemoryNetwork(world.vocab, 24, slots=length, words=2, hops=2, rngs=nnx.Rngs(0))

  def draw(key, batch):
    return two_hop.sample(key, batch, world, length=length)

  def loss(net, key):
    story = draw(key, 64)
    logits = net.read(story.question, net.write(story.statements, net.init_state(64)))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, story.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == story.answer)

  rate = optax.cosine_decay_schedule(1e-2, steps)
  net, right, done = train(net, loss, steps=steps, rate=rate)
  print(f"memn2n_hops: {right:.3f} of the answers right after {done} steps of 64 stories")
  story = draw(jax.random.key(2), 1)
  state = jax.jit(net.write)(story.statements, net.init_state(1))
  trace = inspect.record(net.read, story.question, state)
  told, asked, answer = sentences(world, story, int(jnp.argmax(trace.output)))
  hops = np.concatenate([trace[f"hop{hop}/read"][:, :, 0] for hop in range(2)], axis=1)
  title = f"{asked}  {answer}"
  return inspect.figure({title: hops}, labels={title: told[::-1]}, size=(5.2, 2.6)), right


def sentences(world: two_hop.World, story: two_hop.Stories, answer: int, row: int = 0):
  """A story, its question and an answer in English."""
  actors, things = ("Mary", "John", "Sandra"), ("football", "apple", "milk")
  rooms = ("kitchen", "garden", "office", "hallway")
  words = ("", *actors[: world.actors], *things[: world.objects], *rooms[: world.rooms])
  first = 1 + world.actors + world.objects
  told = [
    f"{words[who]} {'went to' if what >= first else 'took'} the {words[what]}."
    for who, what in np.asarray(story.statements[row])
  ]
  asked = words[int(story.question[row, 0])]
  asked = f"Where is {asked if asked in actors else 'the ' + asked}?"
  return told, asked, words[answer].capitalize() + "."


class Walker(nnx.Module):
  """An ELMUR layer that walks through corridors; logits of the turn at every step."""

  def __init__(self, rngs: nnx.Rngs):
    self.layer = ELMUR(16, heads=2, segment=10, slots=3, distance=64, rngs=rngs)
    self.embed = nnx.Param(jax.random.normal(rngs.params(), (2, 16)))
    self.head = nnx.Param(jax.random.normal(rngs.params(), (16, 2)) / 4)

  def __call__(self, x):
    y, _ = self.layer(x @ self.embed[...], self.layer.init_state(x.shape[0]))
    return y @ self.head[...]


def elmur_corridor(steps: int = 400):
  """Ten segments: which slot each of them rewrites, when slots were written, and who reads them."""
  longest, size = 6, 10

  def loss(walker, key):
    lengths = tuple(size * (n + 1) for n in range(longest))
    walk = corridor.sample(key, 32, lengths)
    y = walker(corridor.steps(walk, 0, size * longest))
    logits = jnp.take_along_axis(y, (walk.length - 1)[:, None, None], axis=1)[:, 0]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, walk.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == walk.answer)

  rate = optax.cosine_decay_schedule(3e-3, steps)
  walker, right, done = train(Walker(nnx.Rngs(0)), loss, steps=steps, rate=rate)
  print(f"elmur_corridor: {right:.3f} of the turns right after {done} steps of 32 corridors")
  walk = corridor.sample(jax.random.key(1), 1, (10 * size,))
  trace = inspect.record(Walker.__call__, walker, corridor.steps(walk, 0, 10 * size))
  return inspect.figure(trace, ["written", "times", "read"]), right


def pointer_words(steps: int = 1500):
  """Where the network points in its window, and when it points at all."""
  vocab, window, dim = 16, 8, 32
  sizes = {"names": 6, "vocab": vocab, "farthest": window}
  net = PointerMixtureNetwork(dim, vocab=vocab, window=window, hidden=dim, init=0.3,
                              rngs=nnx.Rngs(0))  # fmt: skip
  model = nnx.List([net, nnx.Param(jax.random.normal(jax.random.key(0), (vocab, dim)))])
  ids = jnp.asarray(unknown_words.sample(0, 4096, 40, **sizes).ids)

  def run(model, ids):
    net, embed = model
    return net(embed[...][jnp.where(ids < vocab, ids, 0)], net.init_state(ids.shape[0]))[0]

  def loss(model, key):
    rows = ids[jax.random.randint(key, (32,), 0, ids.shape[0])]
    classes, weights = pointer_targets(rows, vocab=vocab, window=window, unknown=0)
    y, copied = run(model, rows[:, :-1]), (classes >= vocab) & (weights > 0)
    logs = jnp.take_along_axis(y, classes[:, :, None], axis=2)[:, :, 0]
    right = jnp.sum((jnp.argmax(y, axis=-1) == classes) & copied) / jnp.sum(copied)
    return -jnp.sum(logs * weights) / jnp.sum(weights), right

  rate = optax.cosine_decay_schedule(5e-3, steps)
  model, right, done = train(model, loss, steps=steps, rate=rate)
  print(f"pointer_words: {right:.3f} of the new words copied after {done} steps of 32 streams")
  stream = unknown_words.sample(1, 1, 40, **sizes)
  trace = inspect.record(run, model, jnp.asarray(stream.ids)[:, :-1])
  shown = {"distance of the word to copy": stream.distance[:, 1:], **trace}
  return inspect.figure(shown, ["distance of the word to copy", "switch", "read"]), right


PICTURES = {f.__name__: f for f in
            (ntm_copy, dnc_repeat_copy, memn2n_hops, elmur_corridor, pointer_words)}  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default=",".join(PICTURES), help="names, with commas between them")
  parser.add_argument("--into", type=pathlib.Path, default=pathlib.Path("docs/images"))
  args = parser.parse_args()
  for name in args.only.split(","):
    if name not in PICTURES:
      parser.error(f"--only={name}: there is {', '.join(PICTURES)}")
    figure, _ = PICTURES[name]()
    figure.savefig(args.into / f"{name}.png", dpi=100)


if __name__ == "__main__":
  main()
