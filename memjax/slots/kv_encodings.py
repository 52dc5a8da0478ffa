"""Keys and values of `KeyValueMemoryNetwork` made of knowledge and of texts (arXiv 1606.03126,
section 3.2), in NumPy; id 0 pads.
"""

import numpy as np

from memjax.slots.bags import NIL


def triples(subject, relation, object, *, inverse=None) -> tuple[np.ndarray, np.ndarray]:
  """Keys (subject, relation) `[n, 2]` and values (object) `[n, 1]` of facts, given as ids `[n]`.

  Args:
    inverse: `[n]`, ids of the relations read from object to subject: as many slots again, with keys
      (object, inverse) and values (subject).
  """
  keys, values = np.stack([subject, relation], axis=1), np.asarray(object)[:, None]
  if inverse is not None:
    keys = np.concatenate([keys, np.stack([object, inverse], axis=1)])
    values = np.concatenate([values, np.asarray(subject)[:, None]])
  return keys.astype(np.int32), values.astype(np.int32)


def sentences(ids) -> tuple[np.ndarray, np.ndarray]:
  """Sentences `[n, J]` as their own values."""
  ids = np.asarray(ids, np.int32)
  return ids, ids


def windows(
  words, entities, *, width: int = 7, centre: int | None = None, title: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Keys `[n, width]`, the words around each entity of a text, and values `[n, 1]`, the entity.

  Args:
    words: the ids of a text, `[L]`.
    entities: `[L]` bool, which of them are entities.
    width: odd.
    centre: a number that is added to the id in the middle of a key, whose embedding is then another
      than that of the same word elsewhere; give the network a `vocab` that has room for it.
    title: an id: as many slots again, with the same keys and this value.
  """
  if width % 2 != 1 or width < 1:
    raise ValueError(f"width={width} must be odd, so that the entity is in the middle")
  words, half = np.asarray(words), width // 2
  around = np.lib.stride_tricks.sliding_window_view(np.pad(words, half), width)
  at = np.flatnonzero(entities)
  keys, values = around[at].astype(np.int32), words[at][:, None].astype(np.int32)
  keys[:, half] += 0 if centre is None else centre
  if title is not None:
    keys = np.concatenate([keys, keys])
    values = np.concatenate([values, np.full_like(values, title)])
  return keys, values


def items(keys: np.ndarray, values: np.ndarray, key_words: int, value_words: int) -> np.ndarray:
  """What `write` takes, `[n, key_words + value_words]`: both padded; longer ones are refused."""
  parts = []
  for name, a, size in (("keys", keys, key_words), ("values", values, value_words)):
    if a.shape[1] > size:
      raise ValueError(f"{name} have {a.shape[1]} words; at most {name[:-1]}_words={size} fit")
    parts.append(np.pad(a, ((0, 0), (0, size - a.shape[1])), constant_values=NIL))
  return np.concatenate(parts, axis=1).astype(np.int32)
