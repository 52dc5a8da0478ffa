"""Text to token ids and back: bytes, or a `tokenizers` JSON file."""

import abc
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

PIECE = (
  1 << 20
)  # characters given to a JSON tokenizer at once; longer documents are cut at line ends


class Tokenizer(abc.ABC):
  """`encode(str) -> [N]`, `decode(ids) -> str`, ids below `vocab_size`.

  `fingerprint` differs between tokenizers that give different ids; `dtype` is the smallest
  unsigned one that holds them.
  """

  vocab_size: int
  fingerprint: str

  @property
  def dtype(self) -> np.dtype:
    return np.min_scalar_type(self.vocab_size - 1)

  def encode(self, text: str) -> np.ndarray:
    """Token ids of `text`: [N] `dtype`."""
    return self.encode_utf8(text.encode())

  @abc.abstractmethod
  def encode_utf8(self, text: bytes) -> np.ndarray:
    """Token ids of UTF-8 `text`: [N] `dtype`."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Text of ids [N]; what is no text (half a character at an end) becomes U+FFFD."""


class ByteTokenizer(Tokenizer):
  """The 256 bytes of UTF-8."""

  vocab_size = 256
  fingerprint = "bytes"

  def encode_utf8(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return np.asarray(ids, np.uint8).tobytes().decode("utf-8", errors="replace")


class JSONTokenizer(Tokenizer):
  """A tokenizer saved by the `tokenizers` library.

  No special tokens are added, nothing is cut or padded.

  Raises:
    ValueError: `path` is missing or is not such a file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    import tokenizers  # heavy, and many runs need it not

    try:
      data = pathlib.Path(path).expanduser().read_bytes()
      self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
      raise ValueError(
        f"tokenizer={str(path)!r} cannot be read ({error}): give the JSON file that "
        "`tokenizers.Tokenizer.save` wrote (often called tokenizer.json), or None for bytes"
      ) from error
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
    self.fingerprint = hashlib.sha256(data).hexdigest()[:16]

  def encode_utf8(self, text: bytes) -> np.ndarray:
    pieces = self._tokenizer.encode_batch(list(_pieces(text.decode())), add_special_tokens=False)
    return np.concatenate(
      [np.asarray(piece.ids, self.dtype) for piece in pieces] or [np.zeros(0, self.dtype)]
    )

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


def _pieces(text: str) -> Iterator[str]:
  start = 0
  while start < len(text):
    end = text.find("\n", start + PIECE) + 1 or len(text)
    yield text[start:end]
    start = end


def load_tokenizer(path: str | os.PathLike[str] | None) -> Tokenizer:
  """The tokenizer saved at `path`, or bytes for None (or "", as an unset configuration field)."""
  return JSONTokenizer(path) if path else ByteTokenizer()
