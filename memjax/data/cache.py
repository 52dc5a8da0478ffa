"""Folders that are made once, whole or not at all; and the tokens that are kept in them."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from memjax.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ELSEWHERE = "name another folder with cache_dir= (or the variable MEMJAX_CACHE)"
LAYOUT = 1  # of the files below; raise it when they change, and old folders are left alone


class Tokens(NamedTuple):
  """One split.

  Attributes:
    tokens: [T] unsigned, mapped from disk.
    starts: [N + 1] int64. Where the N documents begin, and T.
    num_bytes: of the text.
  """

  tokens: np.ndarray
  starts: np.ndarray
  num_bytes: int


def default_folder() -> pathlib.Path:
  """`$MEMJAX_CACHE`, else the platform's folder for caches."""
  if folder := os.environ.get("MEMJAX_CACHE"):
    return pathlib.Path(folder).expanduser()
  if sys.platform == "darwin":
    return pathlib.Path.home() / "Library" / "Caches" / "memjax"
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "memjax"


def key(*parts: object) -> str:
  """16 hex digits of everything that decides what a folder holds."""
  return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """One process at a time, on this machine or over a shared file system.

  Raises:
    OSError: the folder of `path` cannot be made or written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")
  except OSError as error:
    what = f"{path.parent} cannot be written ({error.strerror})"
    raise OSError(error.errno, f"{what}: make it writable, or {ELSEWHERE}") from error
  with file:  # never deleted: another process may already wait on it
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def prepare(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """Returns `folder`; if it is not there, `build` fills a folder beside it that is then renamed.

  Raises:
    OSError: the cache cannot be written or the disk is full; nothing is left behind.
  """
  if folder.exists():
    return folder
  with locked(folder.parent / f".{folder.name}.lock"):
    if not folder.exists():
      try:
        _build(folder, build)
      except (OSError, RuntimeError) as error:  # array_record raises the second
        full = [number for number in FULL if os.strerror(number) in str(error)]
        if not full:
          raise
        what = f"no room for the prepared text in {folder.parent} ({os.strerror(full[0])})"
        raise OSError(full[0], f"{what}: free some, or {ELSEWHERE}") from error
  return folder


def _build(folder: pathlib.Path, build: Callable[[pathlib.Path], None]) -> None:
  for stale in folder.parent.glob(f".{folder.name}.incomplete-*"):
    shutil.rmtree(stale, ignore_errors=True)  # the lock is ours, so whoever made it is dead
  temporary = folder.parent / f".{folder.name}.incomplete-{os.getpid()}"
  try:
    temporary.mkdir()
    build(temporary)
    temporary.rename(folder)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def write_tokens(
  folder: pathlib.Path,
  documents: dict[str, Iterable[bytes]],
  tokenizer: Tokenizer,
  limit_bytes: int | None,
) -> None:
  """Tokenises both splits into `folder`: `SPLIT.tokens`, `SPLIT.starts.npy` and `corpus.json`.

  Args:
    documents: by split, UTF-8 text; empty documents are passed over.
    limit_bytes: each split ends after so many bytes of text (at a character's border).
  Raises:
    ValueError: a split without text.
  """
  digest = hashlib.sha256(tokenizer.fingerprint.encode())
  splits = {}
  for split in SPLITS:
    lengths, num_bytes = [], 0
    with open(folder / f"{split}.tokens", "wb") as file:
      for text in _limited(documents[split], limit_bytes):
        tokens = tokenizer.encode_utf8(text)
        if len(tokens):
          file.write(tokens.tobytes())
          digest.update(tokens.tobytes())
          lengths.append(len(tokens))
          num_bytes += len(text)
    if not lengths:
      raise ValueError(
        f"the {split} split holds no text: give more of it (at least two characters)"
      )
    starts = np.fromiter(itertools.accumulate(lengths, initial=0), np.int64, len(lengths) + 1)
    np.save(folder / f"{split}.starts.npy", starts)
    digest.update(starts.tobytes())
    splits[split] = {"tokens": int(starts[-1]), "bytes": num_bytes}
  corpus = {"fingerprint": digest.hexdigest()[:16], "dtype": tokenizer.dtype.name, "splits": splits}
  (folder / "corpus.json").write_text(json.dumps(corpus))


def _limited(documents: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
  left = limit
  for text in documents:
    if left is not None and len(text) > left:
      text = (
        text[:left].decode("utf-8", errors="ignore").encode()
      )  # drops half a character at the end
      left = len(text)
    yield text
    if left is not None:
      left -= len(text)
      if not left:
        return


def read_tokens(folder: pathlib.Path) -> tuple[str, dict[str, Tokens]]:
  """The fingerprint and the splits that `write_tokens` left, mapped from disk.

  Raises:
    OSError: files that are missing or cut short.
  """
  try:
    corpus = json.loads((folder / "corpus.json").read_text())
    splits = {}
    for split, sizes in corpus["splits"].items():
      tokens = np.memmap(folder / f"{split}.tokens", corpus["dtype"], mode="r")
      starts = np.load(folder / f"{split}.starts.npy", allow_pickle=False)
      if len(tokens) != sizes["tokens"] or starts[-1] != sizes["tokens"]:
        raise ValueError(f"{split}: {len(tokens)} tokens, {sizes['tokens']} expected")
      splits[split] = Tokens(tokens, starts, sizes["bytes"])
  except (OSError, ValueError, KeyError) as error:
    raise OSError(
      f"the prepared text in {folder} is damaged ({error}): delete the folder and run again"
    ) from error
  return corpus["fingerprint"], splits
