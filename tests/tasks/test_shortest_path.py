"""Shortest paths against a search from node to node, and against a reader of single edges."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.shortest_path import ShortestPath
from memjax.tasks.task import TEST

TASK = ShortestPath(nodes=8, degree=2, hops=3, names=30)


@pytest.fixture(scope="module")
def batch():
  return jax.jit(lambda index: TASK.sample(0, TEST, index))(jnp.arange(600))


def distance(edges, source, target):
  """Edges of a shortest path, by breadth-first search; None without one."""
  far, queue = {source: 0}, collections.deque([source])
  while queue:
    here = queue.popleft()
    for u, v in edges:
      if u == here and v not in far:
        far[v] = far[here] + 1
        queue.append(v)
  return far.get(target)


def test_the_answer_is_the_only_shortest_path(batch):
  for inputs, targets in zip(
    np.asarray(batch.inputs)[:100], np.asarray(batch.targets)[:100], strict=True
  ):
    edges = {(int(u), int(v)) for u, v, _ in inputs[: TASK.told].reshape(-1, 3)}
    sources = collections.Counter(u for u, _ in edges)
    assert len(edges) == 16 and all(u != v for u, v in edges)
    assert len(sources) == 8 and set(sources.values()) == {2}
    ask, source, target, answer, first = (int(i) for i in inputs[TASK.told :])
    assert (ask, answer) == (2, 3) and first == targets[-2]  # the first node is read for the second
    path = [source, *(int(i) for i in targets[-2:]), target]
    assert distance(edges, source, target) == 3
    for edge in zip(path[:-1], path[1:], strict=True):
      assert edge in edges and distance(edges - {edge}, source, target) != 3


def test_a_reader_of_single_edges_knows_the_first_node_as_often_as_the_floor(batch):
  edges = np.asarray(batch.inputs)[:, : TASK.told].reshape(600, -1, 3)
  source = np.asarray(batch.inputs)[:, TASK.told + 1]
  guess = [rows[rows[:, 0] == s][0, 1] for rows, s in zip(edges, source, strict=True)]
  right = np.mean(guess == np.asarray(batch.targets)[:, -2])
  assert abs(right - TASK.floor) < 3 * (0.25 / 600) ** 0.5


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"hops": 1}, r"hops=1 must lie in 2\.\.9"),
    ({"degree": 9}, "degree=9 must be below 9"),
    ({"names": 5}, "names=5 must be at least nodes=10"),
  ],
)
def test_what_has_no_paths_is_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    ShortestPath(**settings)
