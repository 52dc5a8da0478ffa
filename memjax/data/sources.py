"""Where text comes from: by split, documents as UTF-8 bytes, read when they are asked for."""

import glob
import hashlib
import os
import pathlib
import re
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

VALIDATION_SHARE = 0.05  # of several files, or of the examples of a set that has no split for it
VALIDATION_TAIL = 0.1  # of a single file
ERRORS = ("strict", "replace")


class Source(NamedTuple):
  """Text that is not read yet.

  Attributes:
    identity: changes when the text may have changed; cheap to find.
    documents: reads the text: from split to documents.
  """

  identity: tuple
  documents: Callable[[], dict[str, Iterable[bytes]]]


def fraction(name: str) -> float:
  """A number in [0, 1) that depends on nothing but `name`."""
  return int.from_bytes(hashlib.sha256(b"memjax" + os.fsencode(name)).digest()[:8], "big") / 2**64


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
  """Cuts two or more names into the splits by their hashes; both get at least one.

  Each stands in the hashes' order, so that the first bytes of a split are a fair sample of it.
  """
  names = sorted(names, key=fraction)
  held = sum(fraction(name) < VALIDATION_SHARE for name in names)
  held = min(max(held, 1), len(names) - 1)
  return {"train": names[held:], "validation": names[:held]}


def stdlib_files() -> tuple[pathlib.Path, list[str]]:
  """The running Python's standard library: its folder, and its sources without tests, sorted."""
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
  files = []
  for folder, inner, names in os.walk(root):
    inner[:] = [name for name in inner if name not in skip]  # the walk enters no others
    files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
  return root, sorted(pathlib.Path(file).relative_to(root).as_posix() for file in files)


def utf8(text: bytes, errors: str, where: str) -> bytes:
  """`text` if it is UTF-8; if not and errors="replace", with U+FFFD for what is not.

  Raises:
    ValueError: it is not, and errors="strict"; names the place and the byte.
  """
  try:
    text.decode()
  except UnicodeDecodeError as error:
    if errors == "replace":
      return text.decode(errors="replace").encode()
    raise ValueError(
      f"{where} is not UTF-8: byte 0x{text[error.start]:02x} at offset {error.start} "
      f"({error.reason}). Convert it (iconv -f latin1 -t utf-8), leave it out, or put U+FFFD in "
      "place of such bytes with encoding_errors='replace'"
    ) from None
  return text


def text_files(pattern: str | os.PathLike[str], errors: str) -> Source:
  """The files that match `pattern` (`**` for any depth, `~` for the home folder).

  Several files are split by file, by the hash of the path below the pattern's fixed part; a
  single one by position: its last tenth, from a line's start, is for validation.

  Raises:
    FileNotFoundError: nothing matches.
    ValueError: an empty file, or (when it is read) one that is not UTF-8.
    OSError: a file that cannot be read.
  """
  root, files = _matches(os.path.expanduser(os.fspath(pattern)))
  sizes = [_stat(root / file) for file in files]

  def documents() -> dict[str, Iterable[bytes]]:
    if len(files) == 1:
      return _split_by_position(_read(root / files[0], errors))
    splits = split_files(files)
    return {split: (_read(root / name, errors) for name in splits[split]) for split in splits}

  return Source(("text", str(root), errors, files, sizes), documents)


def _matches(pattern: str) -> tuple[pathlib.Path, list[str]]:
  """The folder above the first wildcard, and the sorted paths below it of the files."""
  if os.path.isfile(pattern):  # whatever signs its name holds
    path = pathlib.Path(os.path.abspath(pattern))
    return path.parent, [path.name]
  found = sorted(glob.glob(pattern, recursive=True))
  files = {os.path.realpath(path): path for path in found if not os.path.isdir(path)}
  if not files:
    what, hint = "matches no file", "check the spelling; '**' matches any depth of folders"
    if found:
      inside = os.path.join(pattern, "**", "*.txt")
      what, hint = "matches only folders", f"for the files inside give path={inside!r}"
    raise FileNotFoundError(f"path={pattern!r} {what} (looked from {os.getcwd()}): {hint}")
  root = os.path.abspath(os.path.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0]))
  return pathlib.Path(root), [os.path.relpath(path, root) for path in files.values()]


def _stat(path: pathlib.Path) -> tuple[int, int]:
  try:
    stat = path.stat()
  except OSError as error:
    raise _unreadable(path, error) from error
  if not stat.st_size:
    raise ValueError(f"{path} is empty: remove it, or give a narrower path=")
  return stat.st_size, stat.st_mtime_ns


def _read(path: pathlib.Path, errors: str) -> bytes:
  try:
    text = path.read_bytes()
  except OSError as error:
    raise _unreadable(path, error) from error
  return utf8(text, errors, str(path))


def _unreadable(path: pathlib.Path, error: OSError) -> OSError:
  what = f"{path} cannot be read ({error.strerror})"
  return OSError(error.errno, f"{what}: check its permissions, or give a narrower path=")


def _split_by_position(text: bytes) -> dict[str, Iterable[bytes]]:
  at = int(len(text) * (1 - VALIDATION_TAIL))
  at = text.find(b"\n", at, at + 10_000) + 1 or at
  while at < len(text) and text[at] & 0xC0 == 0x80:  # not inside a character
    at += 1
  return {"train": [text[:at]], "validation": [text[at:]]}
