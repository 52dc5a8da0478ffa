"""The standard library and TFDS sets, without TensorFlow."""

import json
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from memjax import data
from memjax.data import sources

LOAD = """
import sys
import memjax
assert not {"memjax.data", "grain", "tensorflow_datasets"} & set(sys.modules)
import memjax.data
corpus = memjax.data.load(cache_dir=sys.argv[1])
batches = corpus.train_batches(32, 2)
next(batches)
batches.close()
next(iter(corpus.evaluation_batches(32, 2)))
assert "tensorflow" not in sys.modules
print(corpus.fingerprint)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """What two processes said that prepared the default text at once; TensorFlow would not load."""
  folder = tmp_path_factory.mktemp("stdlib")
  (folder / "tensorflow").mkdir()
  (folder / "tensorflow" / "__init__.py").write_text("raise RuntimeError('TensorFlow was loaded')")
  path = f"{folder}:{':'.join(sys.path)}"
  command = [sys.executable, "-W", "error", "-c", LOAD, str(folder / "cache")]
  processes = [
    subprocess.Popen(
      command,
      env={"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "HOME": str(folder)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  said = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  return folder / "cache", said


def test_two_processes_prepare_it_at_once_and_quietly(prepared):
  folder, said = prepared
  corpus = data.load(cache_dir=folder)
  assert said == [(corpus.fingerprint + "\n", "")] * 2
  assert not list(folder.glob("**/*incomplete*"))
  assert len(list(folder.glob("python-*/**/*.array_record*"))) == 2


def test_the_standard_library(prepared):
  corpus = data.load(cache_dir=prepared[0])
  root, files = sources.stdlib_files()
  assert "typing.py" in files and "json/decoder.py" in files
  assert not any(
    "site-packages" in file or "/test" in f"/{file}" for file in files if "unittest" not in file
  )
  texts = {(root / file).read_bytes() for file in files} - {b""}
  parts = {}
  for split, (tokens, starts, _) in corpus.splits.items():
    parts[split] = [bytes(tokens[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]
  assert len(parts["train"] + parts["validation"]) == len(texts)
  assert {*parts["train"], *parts["validation"]} == texts
  total = sum(corpus.num_bytes.values())
  assert total > 5_000_000
  assert 0.02 < corpus.num_bytes["validation"] / total < 0.1


TEXTS = {
  split: [f"{split} {i} caf\N{LATIN SMALL LETTER E WITH ACUTE}" for i in range(n)]
  for split, n in (("train", 60), ("test", 3))
}


class MemjaxVerses(tfds.core.GeneratorBasedBuilder):
  """Two configurations: with a test split and without."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name) for name in ("both", "one", "odd", "no_utf8")
  ]

  def _info(self):
    features = tfds.features.FeaturesDict(
      {"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    train, test = (self._generate_examples(TEXTS[split]) for split in ("train", "test"))
    name = self.builder_config.name
    return {"odd": {"x": train, "y": test}, "both": {"train": train, "test": test}}.get(
      name, {"whole": train}
    )

  def _generate_examples(self, texts):
    for i, text in enumerate(texts):
      yield (
        i,
        {
          "text": text.encode("latin1" if self.builder_config.name == "no_utf8" else "utf8"),
          "n": i,
        },
      )


@pytest.fixture
def load(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TFDS leaves empty folders there

  def load(name, **options):
    return data.load(
      "tfds", name=name, path=str(tmp_path / "tfds"), cache_dir=tmp_path / "cache", **options
    )

  return load


def texts(corpus, split):
  tokens, starts, _ = corpus.splits[split]
  pairs = zip(starts[:-1], starts[1:], strict=True)
  return sorted(corpus.tokenizer.decode(tokens[a:b]) for a, b in pairs)


def test_a_set_with_two_splits(load):
  corpus = load("memjax_verses/both")
  assert texts(corpus, "train") == sorted(TEXTS["train"])
  assert texts(corpus, "validation") == sorted(TEXTS["test"])
  assert load("memjax_verses/both").fingerprint == corpus.fingerprint


def test_a_set_with_one_split(load):
  corpus = load("memjax_verses/one")
  train, validation = texts(corpus, "train"), texts(corpus, "validation")
  assert sorted(train + validation) == sorted(TEXTS["train"])
  assert 1 <= len(validation) <= 10


def test_a_set_of_which_only_the_files_are_here(load, tmp_path):
  corpus = load("memjax_verses/both")
  folder = tmp_path / "tfds" / "foreign_verses" / "1.0.0"
  shutil.copytree(tmp_path / "tfds" / "memjax_verses" / "both" / "1.0.0", folder)
  for file in folder.iterdir():
    if file.suffix == ".json":
      file.write_text(file.read_text().replace("memjax_verses", "foreign_verses"))
    file.rename(folder / file.name.replace("memjax_verses", "foreign_verses"))
  info = folder / "dataset_info.json"
  info.write_text(json.dumps({**json.loads(info.read_text()), "configName": ""}))
  assert load("foreign_verses").fingerprint == corpus.fingerprint


def test_sets_that_cannot_be_used(load, tmp_path):
  with pytest.raises(ValueError, match="no split 'train' .it has x, y."):
    load("memjax_verses/odd")
  with pytest.raises(ValueError, match="example .* of memjax_verses/no_utf8:whole is not UTF-8"):
    load("memjax_verses/no_utf8")
  assert load("memjax_verses/no_utf8", encoding_errors="replace").num_tokens["train"]
  with pytest.raises(ValueError, match="no set that TFDS knows.*did you mean memjax_verses"):
    load("memjax_verse")
  with pytest.raises(ValueError, match="mnist.* has no feature 'text' .it has image, label."):
    load("mnist")
  load("memjax_verses/both")
  info = tmp_path / "tfds" / "memjax_verses" / "both" / "1.0.0" / "dataset_info.json"
  info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
  with pytest.raises(ValueError, match="only array_record is read without TensorFlow"):
    load("memjax_verses/both")


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (ModuleNotFoundError("No module named 'tensorflow'"), "Where TensorFlow is installed run"),
    (ConnectionError("no route"), "could not be downloaded and prepared .no route."),
  ],
)
def test_a_set_that_cannot_be_prepared_here(load, monkeypatch, error, message):
  def fail(self):
    raise error

  monkeypatch.setattr(MemjaxVerses, "download_and_prepare", fail)
  with pytest.raises(type(error).__mro__[1] if "module" in str(error) else OSError, match=message):
    load("memjax_verses/both")
