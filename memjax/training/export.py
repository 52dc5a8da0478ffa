"""Parameters as `safetensors` files, the exchange format that most libraries read.

Names are those of `core.module.flatten`: `body/layers/3/memory/values/table`, layers by depth,
whatever way they were grouped. A model larger than `file_bytes` is cut into files between arrays,
with an index beside them:

    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

Arrays are copied to the host one file at a time, and read straight into their place: a table of
many gigabytes needs that much memory once.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.core.module import named_leaves

DTYPES = (
  "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64",
  "uint32", "uint16", "uint8", "bool",
)  # fmt: skip


class Entry(NamedTuple):
  """One array to write: its shape and dtype, and a function that copies it to the host."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def save_safetensors(
  path, tree, *, metadata: Mapping[str, str] | None = None, file_bytes: int = 5 * 10**9
) -> list[pathlib.Path]:
  """Writes the arrays of a model, or of any pytree, as `safetensors`; replaces what stands there.

  Args:
    path: `model.safetensors`; if one file does not hold all, the index `<path>.index.json` and the
      files named like `<path>`. Each file is complete or absent; the index comes last.
    tree: a model, `state.params`, or another pytree of arrays; on several processes each must hold
      all of it.
    metadata: texts kept in the files' headers, such as a step.
    file_bytes: most bytes of arrays in a file; an array of more has a file to itself.

  Returns:
    The files written.

  Raises:
    TypeError: an array's dtype is none of `DTYPES`, or metadata holds something but texts.
    ValueError: the path does not end in `.safetensors`; an array is spread over processes.
    ImportError: the package `safetensors` is missing.
  """
  return save_entries(path, entries_of(tree), metadata=metadata, file_bytes=file_bytes)


def entries_of(tree) -> dict[str, Entry]:
  """What `save_entries` writes of a tree, by name; nothing is copied yet."""
  entries = {}
  for leaf, names, stacked in named_leaves(tree):
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      raise ValueError(
        f"{names[0]} is spread over {jax.process_count()} processes; export it from a checkpoint, "
        "in one process"
      )
    for index, name in enumerate(names):
      shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
      read = _reader(leaf, index if stacked else None)
      entries[name] = Entry(shape, leaf.dtype, read)
  return entries


def _reader(leaf, index: int | None) -> Callable[[], np.ndarray]:
  return lambda: np.asarray(leaf if index is None else leaf[index], order="C")


def save_entries(
  path, entries: Mapping[str, Entry], *, metadata: Mapping[str, str] | None = None,
  file_bytes: int = 5 * 10**9,
) -> list[pathlib.Path]:  # fmt: skip
  """`save_safetensors` of arrays that are read one after the other, as out of a checkpoint."""
  from safetensors.numpy import save_file

  checks.positive(file_bytes=file_bytes)
  path = pathlib.Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"path={str(path)!r} must end in .safetensors")
  header = {"format": "flax", **(metadata or {})}
  for name, value in header.items():
    if not isinstance(value, str):
      raise TypeError(f"metadata[{name!r}] is {value!r}; safetensors keeps texts only")
  for name, entry in entries.items():
    if str(entry.dtype) not in DTYPES:
      raise TypeError(f"{name} is {entry.dtype}; safetensors files hold {', '.join(DTYPES)}")
  groups = list(_groups(entries, file_bytes))
  names = [_file_name(path, i, len(groups)) for i in range(len(groups))]
  path.parent.mkdir(parents=True, exist_ok=True)
  index_path, written = _index(path), []
  for group, name in zip(groups, names, strict=True):
    target = path.with_name(name)
    partial = path.with_name(f".{name}.{os.getpid()}")
    save_file({key: entries[key].read() for key in group}, partial, metadata=header)
    os.replace(partial, target)
    written.append(target)
  if len(groups) == 1:
    index_path.unlink(missing_ok=True)  # of an export that stood here before
  else:
    files = {key: name for group, name in zip(groups, names, strict=True) for key in group}
    total = sum(entry.nbytes for entry in entries.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2)
    partial = index_path.with_name(f".{index_path.name}.{os.getpid()}")
    partial.write_text(text + "\n")
    os.replace(partial, index_path)
    path.unlink(missing_ok=True)
  return written


def load_safetensors(path, template) -> Any:
  """The template's structure with the arrays of `safetensors` files.

  Args:
    path: `model.safetensors`, also where `model.safetensors.index.json` names several files.
    template: a model or another pytree of arrays or `jax.ShapeDtypeStruct`s, which gives names,
      shapes, dtypes and placement; sharded arrays are read piece by piece, each process its own.

  Raises:
    FileNotFoundError: there is no such file, nor its index.
    ValueError: a file is damaged or no `safetensors` file; names, shapes or dtypes are not the
      template's.
    ImportError: the package `safetensors` is missing.
  """
  leaves = named_leaves(template)
  with _Files(pathlib.Path(path)) as files:
    files.check([name for _, names, _ in leaves for name in names])
    arrays = [files.array(leaf, names, stacked) for leaf, names, stacked in leaves]
  return jax.tree.unflatten(jax.tree.structure(template), arrays)


def read_metadata(path) -> dict[str, str]:
  """The metadata in the header of a `safetensors` file, or of the first of several."""
  with _Files(pathlib.Path(path)) as files:
    return files.metadata


def _index(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".index.json")


def _file_name(path: pathlib.Path, index: int, count: int) -> str:
  return path.name if count == 1 else f"{path.stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def _groups(entries: Mapping[str, Entry], most: int) -> Iterable[list[str]]:
  """The names of each file, in order."""
  group, size = [], 0
  for name, entry in entries.items():
    if group and size + entry.nbytes > most:
      yield group
      group, size = [], 0
    group.append(name)
    size += entry.nbytes
  yield group


class _Files:
  """One or several `safetensors` files opened for reading."""

  def __init__(self, path: pathlib.Path):
    self.path, self.stack = path, contextlib.ExitStack()
    self.by_name: dict[str, Any] = {}
    self.metadata: dict[str, str] = {}

  def __enter__(self):
    try:
      for file in self._paths():
        opened = self.stack.enter_context(_open(file))
        self.metadata = self.metadata or opened.metadata() or {}
        self.by_name.update(dict.fromkeys(opened.keys(), opened))
    except BaseException:
      self.stack.close()
      raise
    return self

  def __exit__(self, *_):
    self.stack.close()

  def _paths(self) -> list[pathlib.Path]:
    index = _index(self.path)
    if self.path.exists():
      return [self.path]
    if not index.exists():
      raise FileNotFoundError(f"there is neither {self.path} nor {index.name} beside it")
    try:
      names = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
      inside = all(pathlib.PurePath(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{index} is no index of safetensors files ({error!r})") from error
    if not inside:
      raise ValueError(f"{index} names files outside of its folder")
    missing = [name for name in names if not (self.path.parent / name).exists()]
    if missing:
      raise FileNotFoundError(f"{index} names {missing[0]}, which is not there")
    return [self.path.parent / name for name in names]

  def check(self, wanted: list[str]) -> None:
    missing = sorted(set(wanted) - set(self.by_name))
    extra = sorted(set(self.by_name) - set(wanted))
    if missing or extra:
      raise ValueError(
        f"{self.path} is of another model: it lacks {len(missing)} arrays (such as {missing[:3]}) "
        f"and has {len(extra)} others (such as {extra[:3]})"
      )

  def array(self, leaf, names: tuple[str, ...], stacked: bool) -> jax.Array:
    """The array of a leaf, where the leaf lies."""
    shape = tuple(leaf.shape)
    for name in names:
      found = self.by_name[name].get_slice(name)
      got, own = tuple(found.get_shape()), shape[1:] if stacked else shape
      if (got, found.get_dtype()) != (own, _code(leaf.dtype)):
        raise ValueError(
          f"{name} is {found.get_dtype()}{list(got)} in {self.path}; here it is "
          f"{leaf.dtype}{list(own)}"
        )

    def read(index) -> np.ndarray:
      if not stacked:
        return self._part(names[0], index)
      out = [self._part(name, index[1:]) for name in names[index[0]]]
      return np.stack(out)

    bound = getattr(leaf, "committed", not isinstance(leaf, jax.Array))
    sharding = getattr(leaf, "sharding", None) if bound else None
    if sharding is None:
      return jnp.asarray(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)

  def _part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    file = self.by_name[name]
    if all(part == slice(None) for part in index):
      return file.get_tensor(name)
    return file.get_slice(name)[index]


def _code(dtype) -> str:
  """How `safetensors` names a dtype."""
  short = {"bfloat": "BF", "float": "F", "uint": "U", "int": "I", "bool": "BOOL"}
  name = str(dtype)
  kind = name.rstrip("0123456789")
  return short.get(kind, name) + name.removeprefix(kind)


def _open(path: pathlib.Path):
  from safetensors import SafetensorError, safe_open

  try:
    return safe_open(path, framework="np")
  except (SafetensorError, OSError) as error:
    raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
