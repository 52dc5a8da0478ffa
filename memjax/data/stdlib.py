"""The running Python's standard library as a TFDS set of text, made without TensorFlow."""

import contextlib
import io
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from memjax.data.sources import split_files, stdlib_files


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Asks no server for what is made here."""


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
  """One example a source file (`path`, `text`); no file, and no text, is in both splits."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {"path": tfds.features.Text(), "text": tfds.features.Text()}
    )
    return _Info(builder=self, description=str(type(self).__doc__), features=features)

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict]]]:
    root, files = stdlib_files()
    texts = {}  # text -> path: a copy of a file, and an empty one, is left out
    for file in files:
      text = (root / file).read_bytes()
      with contextlib.suppress(UnicodeDecodeError):
        if text.decode():
          texts.setdefault(text, file)
    by_path = {path: text for text, path in texts.items()}
    splits = split_files(list(by_path))
    return {
      split: self._generate_examples({path: by_path[path] for path in splits[split]})
      for split in splits
    }

  def _generate_examples(self, files: dict[str, bytes]) -> Iterator[tuple[str, dict]]:
    for path, text in files.items():
      yield path, {"path": path, "text": text}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """No progress bars, no lines on standard output, no log below a warning: it takes a second."""
  absl = logging.getLogger("absl")
  level, bars = absl.level, getattr(tqdm_utils, "_active", True)
  try:
    absl.setLevel(logging.WARNING)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl.setLevel(level)
    if bars:
      tfds.enable_progress_bar()


def prepare(folder: pathlib.Path) -> None:
  """Writes the set into `folder`."""
  with _quiet():
    PythonStdlib(data_dir=str(folder), file_format="array_record").download_and_prepare()
  shutil.rmtree(folder / "downloads", ignore_errors=True)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The data sources of both splits, by name: sequences of examples."""
  version = folder / PythonStdlib.name / str(PythonStdlib.VERSION)
  sources: Any = tfds.builder_from_directory(version).as_data_source()
  return dict(sources)
