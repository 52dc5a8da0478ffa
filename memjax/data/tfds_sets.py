"""Text from TFDS sets in array_record files, read without TensorFlow."""

import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from memjax.data import cache
from memjax.data.sources import VALIDATION_SHARE, Source, fraction, stdlib_files, utf8


def stdlib(folder: pathlib.Path) -> Source:
  """The standard library's sources, prepared by TFDS in `folder` the first time.

  Raises:
    FileNotFoundError: a Python that came without them.
  """
  root, files = stdlib_files()
  if len(files) < 2:
    what = f"this Python has no sources of its standard library in {root}"
    raise FileNotFoundError(f"{what}: give other text with source='text', path=...")
  stats = [(root / file).stat() for file in files]
  identity = ("stdlib", files, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
  version = ".".join(map(str, sys.version_info[:3]))

  def documents() -> dict[str, Iterable[bytes]]:
    from memjax.data import stdlib as module  # imports tensorflow_datasets

    target = folder / f"python-{version}-{cache.key(identity)}"
    splits = module.read(cache.prepare(target, module.prepare))
    return {name: _texts(examples, "strict", name) for name, examples in splits.items()}

  return Source(identity, documents)


def tfds(name: str, data_dir: str | None, errors: str, folder: pathlib.Path) -> Source:
  """A TFDS set with a feature `text`, from `data_dir` (None: TFDS's own), made there if need be.

  Its splits are used as they are; without a validation or test split, a twentieth of the
  training examples is held out. `folder` keeps the lock that lets one process prepare it.

  Raises:
    ValueError: no such set, no feature `text`, no training split, or files of another format.
    ImportError: the set's own preparation needs TensorFlow.   OSError: it cannot be downloaded.
  """
  with cache.locked(folder / f".tfds-{cache.key(name, data_dir)}.lock"):
    builder = _prepared(name, data_dir and os.path.expanduser(data_dir))
  sizes = [
    (split.name, split.num_examples, split.num_bytes) for split in builder.info.splits.values()
  ]
  train, validation = _split_names(name, [split for split, _, _ in sizes])

  def documents() -> dict[str, Iterable[bytes]]:
    splits = builder.as_data_source()
    where = f"{name}:{train}"
    if validation:
      held = _texts(splits[validation], errors, f"{name}:{validation}")
      return {"train": _texts(splits[train], errors, where), "validation": held}
    return {
      "train": _texts(splits[train], errors, where, lambda share: share >= VALIDATION_SHARE),
      "validation": _texts(splits[train], errors, where, lambda share: share < VALIDATION_SHARE),
    }

  return Source(("tfds", str(builder.data_dir), errors, sizes), documents)


def _prepared(name: str, data_dir: str | None) -> Any:
  builder = _builder(name, data_dir)
  features = list(builder.info.features or ())
  if "text" not in features:
    what = f"name={name!r} has no feature 'text' (it has {', '.join(features)})"
    raise ValueError(f"{what}: choose a set that has one")
  if not builder.is_prepared():
    builder = _builder(name, data_dir, file_format="array_record")
    _prepare(name, builder)
  kind = builder.info.file_format.value
  if kind != "array_record":
    raise ValueError(
      f"{builder.data_dir} holds {kind} files, and only array_record is read without TensorFlow: "
      "give another folder with path=, or convert the set with `tfds convert_format`"
    )
  return builder


def _builder(name: str, data_dir: str | None, **options: Any) -> Any:
  import tensorflow_datasets

  try:
    return tensorflow_datasets.builder(name, data_dir=data_dir, **options)
  except tensorflow_datasets.core.DatasetNotFoundError:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)  # else it needs TF
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see tfds.list_builders()"
    what = f"name={name!r} is no set that TFDS knows, nor one prepared in its folder"
    raise ValueError(f"{what}: {hint}") from None


def _prepare(name: str, builder: Any) -> None:
  elsewhere = f"run `tfds build {name} --file_format=array_record --data_dir=DIR`, give path='DIR'"
  try:
    builder.download_and_prepare()
  except ImportError as error:
    what = f"{name!r} cannot be prepared here ({error})"
    raise ImportError(f"{what}. Where TensorFlow is installed {elsewhere}") from error
  except OSError as error:
    what = f"{name!r} could not be downloaded and prepared ({error})"
    raise OSError(f"{what}. Where there are a network and room {elsewhere}") from error


def _split_names(name: str, splits: list[str]) -> tuple[str, str | None]:
  train = splits[0] if len(splits) == 1 else "train"
  if train not in splits:
    what = f"name={name!r} has no split 'train' (it has {', '.join(splits)})"
    raise ValueError(f"{what}: choose a set that has one")
  held = [split for split in ("validation", "valid", "dev", "test") if split in splits]
  return train, held[0] if held and held[0] != train else None


def _texts(
  examples: Any, errors: str, where: str, keep: Callable[[float], bool] = lambda share: True
) -> Iterator[bytes]:
  for i in range(len(examples)):
    if keep(fraction(str(i))):
      text = examples[i]["text"]
      text = text.encode() if isinstance(text, str) else text
      yield utf8(text, errors, f"example {i} of {where}")
