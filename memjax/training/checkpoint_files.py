"""Checksums of a checkpoint's files, so that damage is found before anything parses them."""

import json
import zlib

NAME = "checksums.json"


def seal(folder) -> None:
  """Writes the size and CRC-32 of every file in the sub-folders of `folder` into `folder`."""
  files = {}
  for item in folder.iterdir():
    if item.is_dir():
      files.update({f"{item.name}/{name}": _size_and_sum(path) for name, path in _files(item)})
  body = json.dumps(files)
  text = json.dumps({"files": body, "crc32": zlib.crc32(body.encode())})
  (folder / NAME).write_text(text)


def flaw(folder, item: str) -> str | None:
  """What is wrong with the files of one sub-folder; None if they are what was sealed."""
  try:
    sealed = json.loads((folder / NAME).read_text())
    if zlib.crc32(sealed["files"].encode()) != sealed["crc32"]:
      return f"{NAME} is not what was saved"
    files = json.loads(sealed["files"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f"{NAME} cannot be read ({type(error).__name__})"
  for name, expected in files.items():
    path = folder / name
    if name.split("/")[0] != item:
      continue
    if not path.exists():
      return f"{name} is missing"
    if _size_and_sum(path) != expected:
      return f"{name} is not what was saved"
  return None


def size(folder) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().length for _, path in _files(folder))


def _files(folder, prefix: str = ""):
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path, f"{prefix}{path.name}/")
    else:
      yield f"{prefix}{path.name}", path


def _size_and_sum(path) -> list[int]:
  size = checksum = 0
  with path.open("rb") as file:
    while chunk := file.read(1 << 24):
      size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
  return [size, checksum]
