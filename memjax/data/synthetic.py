"""Tiny made-up text for tests: words follow one another by a rule, so there is much to learn."""

import pathlib
import random

_TEXT = "a memory holds what one read and gives it back when whoever asks knows its key or place"
WORDS = _TEXT.split()


def text(num_bytes: int, seed: int = 0) -> str:
  """`num_bytes` of ASCII text: lines of words, each followed by one of three that it decides."""
  random_ = random.Random(seed)
  words, size, index = [], 0, random_.randrange(len(WORDS))
  while size < num_bytes:
    index = (3 * index + random_.choice((1, 4, 6))) % len(WORDS)
    words.append(WORDS[index] + random_.choice((" ", " ", " ", " ", "\n")))
    size += len(words[-1])
  return "".join(words)[:num_bytes]


def write_files(
  folder: str | pathlib.Path, files: int = 12, num_bytes: int = 2000, seed: int = 0
) -> str:
  """Writes `files` different files of `num_bytes` each; returns the pattern that matches them."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(files):
    (folder / f"{i:03d}.txt").write_text(text(num_bytes, seed * files + i))
  return str(folder / "*.txt")
