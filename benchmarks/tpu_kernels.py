"""What the TensorCore kernels move, as TPU compilers see them, beside the plain XLA forms.

    pip install -e '.[aot]'
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu_kernels

Needs no TPU: kernels are compiled ahead of time for each chip, and nothing runs. 8192 tokens x 128
rows of a bfloat16 table of 2^20, at 1024 and 2048 columns; the sums of 65,536 of its reads, which
a training step makes sixteen times; and a search of 4 heads among 1024^2 slots. For the kernel:
bytes of its `CostEstimate`, the compiler's temporary memory, and the time of those bytes at the
chip's bandwidth, which no kernel can beat. For plain XLA (gather the rows, then one product or a
scatter; for the search scores, then top-k): the compiler's count of bytes, memory, and the time of
those bytes. A second or two a line; exit code 2 without libtpu.
"""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.embedding_bag import reference, rows, tpu, tpu_plan, tpu_rows
from pallas_kernels.embedding_bag.shapes import Bags
from pallas_kernels.product_key_topk import chunk as search_chunk
from pallas_kernels.product_key_topk import tpu as search_tpu
from pallas_kernels.product_key_topk.shapes import Search

# Topology, and GB/s of HBM for one JAX device: a chip, on tpu7x one of its two cores.
CHIPS = {
  "v5e": ("v5e:2x2", 819),
  "v5p": ("v5p:2x2x1", 2765),
  "v6e": ("v6e:2x2", 1640),
  "tpu7x": ("tpu7x:2x2x1", 3700),
}
BAGS = [Bags(8192, 128, 2**20, row, "bfloat16") for row in ((1024,), (8, 128), (2048,), (16, 128))]
SEARCH = Search(8192, 4, 512, 1024, 32, "bfloat16")
TINY_BAGS = [Bags(16, 8, 64, (128,), "bfloat16")]
TINY_SEARCH = Search(16, 1, 16, 64, 8, "bfloat16")

Case = tuple[str, Callable, Callable, tuple, int]  # name, kernel, plain form, operands, bytes


def cases(bags: list[Bags], search: Search) -> Iterator[Case]:
  for shape in bags:
    table = " x ".join(map(str, (shape.rows, *shape.row)))
    moved = tpu_plan.cost(shape.values, shape.ids).bytes_accessed
    for name, operand in (("embedding_bag", shape.weights), ("dot_bag", shape.vectors)):
      kernel = functools.partial(getattr(tpu, name), interpret=False)
      plain = functools.partial(_plain, getattr(reference, name))
      yield f"{name}, {table}", kernel, plain, (shape.values, shape.ids, operand), moved
  for width in sorted({shape.dim for shape in bags}):
    yield _sums(bags[0].tokens, min(rows.CHUNK, bags[0].ids.size), width)
  moved = search_tpu.cost(search.queries, search.keys, search.top_k).bytes_accessed
  kernel = functools.partial(search_tpu.product_key_topk, top_k=search.top_k, interpret=False)
  plain = functools.partial(search_chunk.product_key_topk, top_k=search.top_k)
  name = f"product_key_topk, {search.heads} x {search.n}^2"
  yield name, kernel, plain, (search.queries, search.keys), moved


def _sums(tokens: int, reads: int, width: int) -> Case:
  of = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
  token = of(reads, dtype=jnp.int32)
  operands = token, of(reads), token, of(tokens, width), of(width)
  kernel = functools.partial(tpu_rows.sum_sorted, size=reads, interpret=False)
  plain = functools.partial(rows.sum_sorted, size=reads)
  moved = tpu_rows.cost(reads, reads, width).bytes_accessed
  return f"sums of {reads} reads x {width}", kernel, plain, operands, moved


def _plain(form: Callable, values, ids, operand):
  return form(values.reshape(values.shape[0], -1), ids, operand)


def compiled(topology: str, fn: Callable, operands: tuple):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = Mesh(np.array(devices[:1]), ("x",))
  whole = NamedSharding(mesh, PartitionSpec())
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole)  # noqa: E731
  with jax.set_mesh(mesh):
    return jax.jit(fn).lower(*map(place, operands)).compile()


HEADER = f"""{"":44}kernel{"":20}plain XLA
{"chip":6} {"op, table":32} {"GB":>7} {"MiB":>6} {"us":>7}   {"GB":>7} {"MiB":>6} {"us":>7}"""


def line(chip: str, case: Case) -> str:
  name, kernel, plain, operands, moved = case
  topology, bandwidth = CHIPS[chip]
  ours, theirs = compiled(topology, kernel, operands), compiled(topology, plain, operands)
  count = theirs.cost_analysis().get("bytes accessed", float("nan"))

  def figures(moved, program) -> str:
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    return f"{moved / 1e9:7.2f} {memory:6.0f} {moved / bandwidth / 1e3:7.0f}"

  return f"{chip:6} {name:32} {figures(moved, ours)}   {figures(count, theirs)}"


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
  parser.add_argument("--tiny", action="store_true", help="small shapes")
  options = parser.parse_args(arguments)
  if importlib.util.find_spec("libtpu") is None:
    print("Compiling for TPUs needs libtpu: pip install -e '.[aot]'", file=sys.stderr)
    return 2
  bags, search = (TINY_BAGS, TINY_SEARCH) if options.tiny else (BAGS, SEARCH)
  print(HEADER)
  for chip in options.chips:
    for case in cases(bags, search):
      print(line(chip, case), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
