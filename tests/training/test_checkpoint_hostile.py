"""Checkpoints from anywhere: whoever wrote them, reading them runs nothing, opens nothing else, and
takes no more memory than the model.

Each is forged with checksums that are right, and read in one process that notes what Python does.
"""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from memjax.training import Checkpoints
from memjax.training.checkpoint_files import seal
from tests.training.test_kill import LIMIT, ROOT

READER = """
import resource, sys
import numpy as np
from memjax.training import Checkpoints, CheckpointError
import orbax.checkpoint, tensorstore, jax, asyncio
template = {"a": np.zeros(50, np.float32), "b": np.zeros(3, np.int32)}
jax.device_put(1.0)
with Checkpoints(sys.argv[1], read_only=True) as good:  # all modules are loaded after this
  assert good.restore(template).step == 1
notes, here = [], sys.argv[1].rsplit("/", 1)[0]

def note(event, args):
  if event in ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "exec",
               "subprocess.Popen", "marshal.loads", "ctypes.dlopen"):
    notes.append((event, str(args)[:100]))
  if event == "import" and args[0] in ("this", "antigravity", "hostile"):
    notes.append((event, args[0]))
  if event == "open" and "secret" in str(args[0]):
    notes.append((event, str(args[0])))

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.addaudithook(note)
for folder in sys.argv[2:]:
  try:
    with Checkpoints(folder, read_only=True) as checkpoints:
      checkpoints.restore(template)
    said = "nothing"
  except (CheckpointError, ValueError) as error:
    said = f"{type(error).__name__}: {error}"
  print(folder.rsplit("/", 1)[1], "|", " ".join(said.split()))
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print("notes", "|", notes)
print("megabytes", "|", int(megabytes))
"""


def change(path: pathlib.Path, edit):
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


def change_stored(folder: pathlib.Path, key: str, edit):
  """Edits a JSON entry in the store that holds the arrays."""
  import tensorstore

  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/arrays/"}).result()
  value = json.loads(store.read(key).result().value)
  edit(value)
  store.write(key, json.dumps(value).encode()).result()


def rename_tree(value):
  value["tree_metadata"] = {
    "('../../secret',)": {
      "key_metadata": [{"key": "../../secret", "key_type": 2}],
      "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
  }


def info(**changes):
  def forge(folder):
    def edit(value):
      value["json"] = json.dumps({**json.loads(value["json"]), **changes})

    change(folder / "info/metadata", edit)

  return forge


def nested(folder):
  (folder / "info/metadata").write_text(json.dumps({"json": "[" * 200_000}))


def traversing_checksums(folder):
  """Lists what is no file of the checkpoint: an endless one, and one that is not ours."""
  names = {"arrays/../../../../../../dev/zero": [1, 1], "info/../../secret": [1, 1]}
  change(folder / "checksums.json", lambda value: value.update(_sealed(value["files"], names)))


def _sealed(body, names):
  body = json.dumps({**json.loads(body), **names})
  return {"files": body, "crc32": zlib.crc32(body.encode())}


def link(folder):
  os.symlink("/dev/zero", folder / "info/more")


def pipe(folder):
  os.mkfifo(folder / "arrays/more")


def pickled(folder):
  """A pickle in place of the JSON, and beside the arrays as old formats had it."""
  code = b"cos\nsystem\n(S'echo hostile'\ntR."
  (folder / "info/metadata").write_bytes(code)
  (folder / "arrays/checkpoint").write_bytes(code)


HUGE = 1 << 40
RESEALED = {
  "shape": (
    lambda f: change_stored(f, "a/.zarray", lambda z: z.update(shape=[HUGE], chunks=[HUGE])),
    r"ValueError: a is float32\[1099511627776\] in the checkpoint of step 2.*float32\[50\]",
  ),
  "chunks": (
    lambda f: change_stored(f, "a/.zarray", lambda z: z.update(chunks=[HUGE])),
    r"CheckpointError: .*a is \[50\] in chunks of \[1099511627776\]",
  ),
  "dtype": (
    lambda f: change_stored(f, "a/.zarray", lambda z: z.update(dtype="|O")),
    "CheckpointError: no checkpoint in .* can be read",
  ),
  "stored-names": (
    lambda f: change(f / "arrays/_METADATA", rename_tree),
    r"CheckpointError: .*'../../secret' is no name of an array",
  ),
  "paths": (
    lambda f: change(f / "arrays/_METADATA", lambda m: m.update(use_ocdbt=False)),
    "CheckpointError: .*not stored in the way in which memjax stores them",
  ),
  "tree": (
    lambda f: change(f / "arrays/_METADATA", lambda m: m.update(tree_metadata=[1])),
    "CheckpointError: no checkpoint in .* can be read",
  ),
  "names": (
    info(names=["../../secret", "b"]),
    r"ValueError: .*lacks 1 .*others \(such as .*secret",
  ),
  "step": (info(step=7), "CheckpointError: .*it is of step 7"),
  "extra": (info(extra=[]), "CheckpointError: .*info is not what memjax writes"),
  "metric": (info(metric="best"), "CheckpointError: .*info is not what memjax writes"),
  "nested": (nested, "CheckpointError: no checkpoint in .* can be read"),
  "pickled": (pickled, "CheckpointError: no checkpoint in .* can be read"),
  "link": (link, "CheckpointError: .*info/more is not a regular file"),
  "pipe": (pipe, "CheckpointError: .*arrays/more is not a regular file"),
  "classes": (
    lambda f: change(
      f / "_CHECKPOINT_METADATA",
      lambda m: m.update(item_handlers={"arrays": "this.Handler", "info": "antigravity.Handler"}),
    ),
    "nothing",
  ),
}
AS_THEY_ARE = {
  "checksums": (traversing_checksums, "CheckpointError: .*(dev/zero|secret) is missing"),
  "unlisted": (
    lambda f: (f / "arrays/more").write_bytes(b"x"),
    "CheckpointError: .*arrays/more has no checksum",
  ),
  "text": (
    lambda f: (f / "checksums.json").write_text("[" * 200_000),
    "CheckpointError: .*checksums.json cannot be read",
  ),
}


def saved(folder, step):
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(
      step, {"a": np.arange(50, dtype=np.float32), "b": np.arange(3, dtype=np.int32)}
    )
  return folder / str(step)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
  """What the reader said of each forged checkpoint, and its notes."""
  top = tmp_path_factory.mktemp("hostile")
  (top / "secret").write_text("not yours")
  saved(top / "good", 1)
  folders = []
  for name, (forge, _) in {**RESEALED, **AS_THEY_ARE}.items():
    folder = saved(top / name, 2)
    forge(folder)
    if name in RESEALED:
      seal_all(folder)
    folders.append(str(top / name))
  foreign = top / "foreign"  # something else altogether
  for name in ("5", "\u00b2", "notes", "3"):
    (foreign / name).mkdir(parents=True)
  (foreign / "5/weights.bin").write_bytes(bytes(100))
  words = [sys.executable, "-c", READER, str(top / "good"), *folders, str(foreign)]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
  assert done.returncode == 0, done.stderr
  return dict(line.split(" | ", 1) for line in done.stdout.splitlines())


def seal_all(folder):
  """Seals what is a regular file, and lists the others with a checksum that means nothing."""
  odd = [p for p in folder.rglob("*") if p.is_symlink() or p.is_fifo()]
  made = [(p, os.readlink(p) if p.is_symlink() else None) for p in odd]
  for path in odd:
    path.unlink()
  seal(folder)
  for path, target in made:
    os.symlink(target, path) if target else os.mkfifo(path)
    names = {str(path.relative_to(folder)): [1, 1]}
    change(
      folder / "checksums.json",
      lambda value, names=names: value.update(_sealed(value["files"], names)),
    )


@pytest.mark.parametrize("name", [*RESEALED, *AS_THEY_ARE])
def test_a_forged_checkpoint_is_named_or_harmless(read, name):
  assert re.match({**RESEALED, **AS_THEY_ARE}[name][1], read[name]), read[name]


def test_a_foreign_folder_is_named(read):
  assert read["foreign"].startswith("CheckpointError: no checkpoint in ")
  assert "step 5: it has no checksums.json: it was not written by memjax" in read["foreign"]


def test_reading_them_ran_nothing_and_took_no_memory(read):
  assert read["notes"] == "[]"
  assert int(read["megabytes"]) < 200


def test_no_source_loads_pickles():
  """Neither by name nor by numpy's or torch's back doors."""
  banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
  files = [
    p for top in ("memjax", "experiments", "pallas_kernels") for p in (ROOT / top).rglob("*.py")
  ]
  assert len(files) > 100
  for path in files:
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name.split(".")[0] for alias in node.names]
      if isinstance(node, ast.ImportFrom):
        names = [(node.module or "").split(".")[0]]
      assert not banned & set(names), f"{path} imports {names}"
      if isinstance(node, ast.Call):
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
