"""The files of checkpoints: their checksums, so that damage is found before anything parses them;
what killed saves leave."""

import contextlib
import errno
import json
import os
import stat
import zlib

NAME = "checksums.json"
LARGEST = 1 << 28  # bytes of a JSON file; one name takes some 100
TEMPORARY = ".orbax-checkpoint-tmp"
DELETING = ".deleting"
_FULL = ("no space left", "disk quota exceeded")


def seal(folder) -> None:
  """Writes the size and CRC-32 of every file in the sub-folders of `folder` into `folder`."""
  files = {}
  for item in folder.iterdir():
    if item.is_dir():
      files.update({f"{item.name}/{name}": _size_and_sum(path) for name, path in _files(item)})
  body = json.dumps(files)
  text = json.dumps({"files": body, "crc32": zlib.crc32(body.encode())})
  (folder / NAME).write_text(text)


def flaw(folder, item: str, part: tuple[int, int] = (0, 1)) -> str | None:
  """What is wrong with the files of one sub-folder; None if they are what was sealed.

  Only regular files below the sub-folder are opened, and only if each has its checksum, whatever
  `checksums.json` says: it too may come from anywhere.

  Args:
    part: `(i, n)`: sum up only every n-th file from the i-th, for n processes that share the work.
  """
  try:
    if (folder / NAME).stat().length > LARGEST:
      return f"{NAME} is larger than {LARGEST} bytes"
    sealed = json.loads((folder / NAME).read_text())
    if zlib.crc32(sealed["files"].encode()) != sealed["crc32"]:
      return f"{NAME} is not what was saved"
    files = {name: list(value) for name, value in json.loads(sealed["files"]).items()}
    found = _files(folder / item) if (folder / item).is_dir() else ()
    there = {f"{item}/{name}": path for name, path in found}
  except FileNotFoundError:
    return f"it has no {NAME}: it was not written by memjax, or not to its end"
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    return f"{NAME} cannot be read ({type(error).__name__})"
  wanted = {name: value for name, value in files.items() if name.split("/")[0] == item}
  for name in sorted(wanted.keys() ^ there.keys()):
    return f"{name} is missing" if name in wanted else f"{name} has no checksum"
  for name in sorted(there):
    if not _regular(there[name]):
      return f"{name} is not a regular file"
  for name in sorted(there)[part[0] :: part[1]]:
    if _size_and_sum(there[name]) != wanted[name]:
      return f"{name} is not what was saved"
  return None


def size(folder) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().length for _, path in _files(folder))


def _files(folder, prefix: str = ""):
  for path in folder.iterdir():
    if path.is_dir() and not os.path.islink(path):
      yield from _files(path, f"{prefix}{path.name}/")
    else:
      yield f"{prefix}{path.name}", path


def _regular(path) -> bool:
  """Not a pipe or device, which could be read for ever, and not a link to one."""
  try:
    return stat.S_ISREG(os.lstat(path).st_mode)
  except OSError:
    return path.is_file()  # in a bucket


def _size_and_sum(path) -> list[int]:
  size = checksum = 0
  with path.open("rb") as file:
    while chunk := file.read(1 << 24):
      size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
  return [size, checksum]


def sweep(directory) -> None:
  """Removes what killed or failed saves and deletions left behind."""
  for path in directory.iterdir():
    if TEMPORARY in path.name or path.name.endswith(DELETING):
      with contextlib.suppress(OSError):  # a failed save may still be writing; the next sweep
        path.rmtree()


def is_full(error: BaseException | None) -> bool:
  """Whether an error, or one that caused it, says that the disk is full."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if any(sign in str(error).lower() for sign in _FULL):
      return True
    error = error.__cause__
  return False
