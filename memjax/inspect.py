"""What a memory did on an input: addresses, gates, usage and links over time, as arrays and as a
figure.

    trace = memjax.inspect.record(memory, x)          # any memory, alone or inside a model
    trace["read"]                                      # [B, T, heads, N]
    memjax.inspect.figure(trace, ["written", "read"]).savefig("addresses.png")

Memories hand out what they have at hand through `core.usage`, and only where somebody records:
training is not touched. B batch, T tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from memjax.core import Memory, channel
from memjax.core.usage import traced

if TYPE_CHECKING:
  from matplotlib.figure import Figure

MOST = 32  # panels of a figure


@dataclasses.dataclass(frozen=True, repr=False)
class Trace(Mapping[str, np.ndarray]):
  """Arrays by name; a layer of a stack has its depth before the name, as in `"2/read"`.

  Attributes:
    arrays: `[B, T, ...]` numpy arrays. T counts tokens; segments, for what happens once a segment.
    output: what the call returned.
  """

  arrays: dict[str, np.ndarray]
  output: Any

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self.arrays:
      raise KeyError(f"{name!r}; the trace has {', '.join(sorted(self.arrays)) or 'nothing'}")
    return self.arrays[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.arrays)

  def __len__(self) -> int:
    return len(self.arrays)

  def __repr__(self) -> str:
    shapes = (f"{name}: {list(array.shape)}" for name, array in self.arrays.items())
    return f"Trace({', '.join(shapes)})"


def record(call: Callable, *args, only: Sequence[str] | None = None, **kwargs) -> Trace:
  """`call(*args, **kwargs)`, compiled, and what the memories in it did.

  Args:
    call: a memory; a method of one, such as a store's `read`; or a function of modules and arrays.
    args: `x, state` of a memory, or `x` alone: from its first state.
    only: names, without the path before them, to keep; None: all. Links are N x N a token.
    kwargs: `reset`, `valid` and `context`, or what a method takes.

  In a call that goes on in an open segment, what happens at the segment's end is not recorded.

  Returns:
    A `Trace`. What is in it stands in the docstrings of the memories ("Traces").
  """
  if isinstance(call, Memory):
    given = len(args) > 1 or "state" in kwargs
    function, args = type(call).__call__ if given else _from_first, (call, *args)
  elif isinstance(getattr(call, "__self__", None), nnx.Module):
    function, args = call.__func__, (call.__self__, *args)
  else:
    function = call
  kept = None if only is None else frozenset(only)
  output, arrays = _recorded(function, kept, args, kwargs)
  return Trace(jax.tree.map(np.asarray, arrays), output)


def _from_first(memory: Memory, x: jax.Array, **kwargs):
  return memory(x, memory.init_state(x.shape[0]), **kwargs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _recorded(function: Callable, only: frozenset[str] | None, args: tuple, kwargs: dict):
  with channel.collect(trace=True) as frame:
    output = function(*args, **kwargs)
  arrays = traced(frame.emitted)
  plain = lambda name: name.rpartition("/")[2].partition(".")[0]  # noqa: E731
  return output, {n: a for n, a in arrays.items() if only is None or plain(n) in only}


def figure(
  trace: Mapping[str, Any], names: Sequence[str] | None = None, *, row: int = 0,
  tokens: slice | None = None, at: int = -1, labels: Mapping[str, Sequence[str]] | None = None,
  size: tuple[float, float] | None = None,
) -> "Figure":  # fmt: skip
  """Draws arrays over time, in the style of the papers: time to the right, slots upwards, white is
  the largest weight of a panel.

  An array `[B, T]` is drawn as a line, `[B, T, N]` as a picture, `[B, T, heads, N]` as one picture
  a head, and `[B, T, heads, N, M]` as one a head too: its matrix at the time `at`.

  Args:
    trace: a `Trace`, or any arrays by name: `{"input": x, **trace}`.
    names: what to draw, from top to bottom; None: all.
    row: which row of the batch.   tokens: which part of time; None: all.   at: see above.
    labels: names of the N rows of pictures, by the name of their array.
    size: of the figure, in inches.

  Raises:
    ImportError: matplotlib is missing.
    ValueError: there is nothing to draw, or more than `MOST` panels of it.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "memjax.inspect.figure draws with matplotlib, which is not installed: "
      "pip install 'memjax[inspect]'"
    ) from error
  names = list(trace) if names is None else list(names)
  arrays = ((name, np.asarray(trace[name])) for name in names)
  panels = [panel for name, a in arrays for panel in _panels(name, a[row], tokens, at)]
  if not 1 <= len(panels) <= MOST:
    found = ", ".join(f"{name}{list(np.shape(trace[name]))}" for name in names)
    raise ValueError(f"{len(panels)} panels, of {found or 'nothing'}; name 1 to {MOST}")
  heights = [_height(panel) for panel in panels]
  size = (8.0, 0.6 + sum(heights) + 0.3 * len(heights)) if size is None else size
  fig = Figure(figsize=size, layout="constrained")
  axes = fig.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
  first = 0 if tokens is None or tokens.start is None else tokens.start
  for place, panel in enumerate(panels):
    _draw(axes[place], panel, first)
    if labels is not None and panel.name in labels:
      axes[place].set_yticks(range(len(labels[panel.name])), labels[panel.name])
  return fig


class _Panel(NamedTuple):
  """What is drawn, `[T]` or `[T, N]`, or `[N, M]` if it is not over time."""

  name: str
  title: str
  values: np.ndarray
  over_time: bool = True


def _panels(name: str, a: np.ndarray, tokens: slice | None, at: int) -> list[_Panel]:
  """The panels of an array `[T, ...]`."""
  a = a if tokens is None else a[tokens]
  a = a[..., 0] if a.ndim > 1 and a.shape[-1] == 1 else a
  if a.ndim <= 2:
    return [_Panel(name, name, a)]
  titles = [name] if a.shape[1] == 1 else [f"{name} {head}" for head in range(a.shape[1])]
  heads = [(title, a[:, head]) for head, title in enumerate(titles)]
  if a.ndim == 3:
    return [_Panel(name, title, one) for title, one in heads]
  return [_Panel(name, title, one[at].reshape(-1, one.shape[-1]), False) for title, one in heads]


def _height(panel: _Panel) -> float:
  if panel.values.ndim == 1:
    return 0.6
  return min(2.4, max(0.35 if panel.over_time else 1.0, 0.06 * panel.values.shape[1]))


def _draw(axes, panel: _Panel, first: int) -> None:
  a = panel.values
  axes.set_title(panel.title, fontsize=9, loc="left", pad=3)
  axes.tick_params(labelsize=7)
  axes.xaxis.get_major_locator().set_params(integer=True)
  extent = (first - 0.5, first + len(a) - 0.5)
  if a.ndim == 1:
    axes.step(np.arange(first, first + len(a)), a, where="mid", color="black", linewidth=1)
    axes.set_xlim(*extent)
    return
  look = {"cmap": "gray", "origin": "lower", "interpolation": "nearest", "vmin": min(0.0, a.min())}
  axes.yaxis.get_major_locator().set_params(integer=True)
  if panel.over_time:
    axes.imshow(a.T, aspect="auto", extent=(*extent, -0.5, a.shape[1] - 0.5), **look)
  else:
    axes.imshow(a, aspect="equal", **look)
