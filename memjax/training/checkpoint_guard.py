"""What stands between a checkpoint from anywhere and the libraries that read it.

Checksums find damage, not malice: whoever forges a checkpoint forges them too. Orbax and
TensorStore run nothing of what they read, but they allocate what it asks for and open the paths
that it names.
"""

import json
import math
from typing import Any

from memjax.training.checkpoint_files import LARGEST

_SLACK = 1 << 20  # elements of a chunk that are harmless beside any array


def described(folder) -> dict[str, Any]:
  """Orbax's metadata of the arrays in `folder` by name (`shape`, `dtype`); no array is read.

  Raises:
    ValueError: it is not such as memjax writes.
    Exception: what Orbax and TensorStore raise on files that they cannot read.
  """
  import orbax.checkpoint as ocp

  path = folder / "_METADATA"
  if path.stat().length > LARGEST:
    raise ValueError(f"_METADATA is larger than {LARGEST} bytes")
  said = json.loads(path.read_text())
  # Without these two, an array's name is a path.
  if said["use_ocdbt"] is not True or said["use_zarr3"] is not False:
    raise ValueError("its arrays are not stored in the way in which memjax stores them")
  for entry in said["tree_metadata"].values():
    [key] = entry["key_metadata"]
    if not isinstance(key["key"], str) or {"", ".", ".."} & set(key["key"].split("/")):
      raise ValueError(f"{key['key']!r} is no name of an array")
  arrays = ocp.PyTreeCheckpointHandler().metadata(folder).tree
  for name, array in arrays.items():
    chunk = array.storage.chunk_shape  # one is read as a whole, however small the array
    if math.prod(chunk) > _SLACK + 4 * math.prod(array.shape):
      raise ValueError(f"{name} is {list(array.shape)} in chunks of {list(chunk)}")
  return arrays
