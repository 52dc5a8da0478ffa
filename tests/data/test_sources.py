"""Text files into tokens: splits, errors, the cache, tokenisers."""

import concurrent.futures
import os
import resource
import shutil
import time

import numpy as np
import pytest

from memjax import data
from memjax.data import cache, sources, synthetic


@pytest.fixture
def load(tmp_path):
  def load(path, **options):
    return data.load("text", path=path, **{"cache_dir": tmp_path / "cache", **options})

  return load


@pytest.fixture
def pattern(tmp_path):
  return synthetic.write_files(tmp_path / "text", files=30, num_bytes=300)


def documents(corpus, split):
  tokens, starts, _ = corpus.splits[split]
  return [bytes(tokens[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]


def test_files_are_split_and_whole(load, pattern, tmp_path):
  corpus = load(pattern)
  train, validation = documents(corpus, "train"), documents(corpus, "validation")
  files = [path.read_bytes() for path in (tmp_path / "text").iterdir()]
  assert len(set(files)) == 30
  assert sorted(train + validation) == sorted(files)
  assert not set(train) & set(validation)
  assert 1 <= len(validation) <= 5
  assert corpus.num_bytes["train"] == corpus.num_tokens["train"] == 300 * len(train)
  assert corpus.vocab_size == 256


def test_the_split_moves_with_the_folder_and_not_with_its_neighbours(load, pattern, tmp_path):
  corpus = load(pattern)
  shutil.copytree(tmp_path / "text", tmp_path / "elsewhere")
  moved = load(tmp_path / "elsewhere" / "*.txt")
  assert moved.fingerprint == corpus.fingerprint
  synthetic.write_files(tmp_path / "text", files=40, num_bytes=300)
  more = load(pattern)
  assert more.fingerprint != corpus.fingerprint
  names = [f"{i:03d}.txt" for i in range(40)]
  small, large = sources.split_files(names[:30]), sources.split_files(names)
  assert set(small["validation"]) <= set(large["validation"])


def test_both_splits_get_a_file():
  for count in range(2, 40):
    splits = sources.split_files([f"{count}-{i}" for i in range(count)])
    assert splits["train"] and splits["validation"]
    assert len({*splits["train"], *splits["validation"]}) == count
  splits = sources.split_files([str(i) for i in range(4000)])
  assert 0.04 < len(splits["validation"]) / 4000 < 0.06


@pytest.mark.parametrize(
  "text",
  [b"line of text\n" * 500, "é".encode() * 999, "a\N{GRINNING FACE}".encode() * 333, b"ab"],
  ids=["lines", "two bytes", "four bytes", "two characters"],
)
def test_a_single_file_is_split_by_position(load, tmp_path, text):
  (tmp_path / "one.txt").write_bytes(text)
  corpus = load(tmp_path / "one.txt")
  (train,), (validation,) = documents(corpus, "train"), documents(corpus, "validation")
  assert train + validation == text
  assert train.decode() and validation.decode()
  if len(text) > 100:
    assert 0.08 < len(validation) / len(text) < 0.101
  if b"\n" in text:
    assert train.endswith(b"\n")


def test_patterns(load, tmp_path, monkeypatch):
  text = synthetic.text(100)
  for name in ("a/x.txt", "a/b/y.txt", "a/b/z.md", "[odd].txt"):
    (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "p" / name).write_text(name + text)
  (tmp_path / "p" / "a" / "again.txt").symlink_to(tmp_path / "p" / "a" / "x.txt")
  monkeypatch.chdir(tmp_path / "p")
  monkeypatch.setenv("HOME", str(tmp_path / "p"))
  for pattern in ("a/**/*.txt", "~/a/**/*.txt", tmp_path / "p" / "a" / "**" / "*.txt"):
    found = documents(load(pattern), "train") + documents(load(pattern), "validation")
    assert sorted(found) == [f"{name}{text}".encode() for name in ("a/b/y.txt", "a/x.txt")]
  assert load("[odd].txt").num_bytes["train"] > 90


def test_paths_that_lead_nowhere(load, tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing.*matches no file.*check the spelling"):
    load(tmp_path / "nothing*.txt")
  (tmp_path / "folder").mkdir()
  with pytest.raises(FileNotFoundError, match=r"only folders.*give path='.*folder/\*\*/\*.txt'"):
    load(tmp_path / "folder")
  with pytest.raises(ValueError, match="needs path="):
    load("")
  (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")
  with pytest.raises(OSError, match="dangling.txt cannot be read .*check its permissions"):
    load(tmp_path / "*.txt")


def test_a_file_that_may_not_be_read(load, pattern, tmp_path, monkeypatch):
  locked = tmp_path / "text" / "003.txt"
  if os.geteuid():
    locked.chmod(0)
  else:  # root may read everything
    read = type(locked).read_bytes

    def refuse(path):
      if path.name == locked.name:
        raise PermissionError(13, "Permission denied", str(path))
      return read(path)

    monkeypatch.setattr(type(locked), "read_bytes", refuse)
  with pytest.raises(PermissionError, match="003.txt cannot be read .Permission denied"):
    load(pattern)
  assert not list((tmp_path / "cache").glob("tokens-*"))


def test_an_empty_file(load, pattern, tmp_path):
  (tmp_path / "text" / "007.txt").write_text("")
  with pytest.raises(ValueError, match="007.txt is empty: remove it"):
    load(pattern)


def test_one_byte_cannot_be_split(load, tmp_path):
  (tmp_path / "a.txt").write_text("a")
  with pytest.raises(ValueError, match="split holds no text"):
    load(tmp_path / "a.txt")


def test_bytes_that_are_not_utf8(load, pattern, tmp_path):
  (tmp_path / "text" / "005.txt").write_bytes(
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} ".encode() * 3 + b"caf\xe9 au lait"
  )
  with pytest.raises(ValueError, match=r"005.txt is not UTF-8: byte 0xe9 at offset 21 .*iconv"):
    load(pattern)
  left = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
  assert not left
  corpus = load(pattern, encoding_errors="replace")
  found = documents(corpus, "train") + documents(corpus, "validation")
  assert (
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} " * 3 + "caf\N{REPLACEMENT CHARACTER} au lait"
  ).encode() in found
  with pytest.raises(ValueError, match="encoding_errors='ignore' must be one of strict, replace"):
    load(pattern, encoding_errors="ignore")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"source": "texts"}, "source='texts' must be 'stdlib', 'text' or 'tfds'"),
    ({"source": "text", "path": "a", "name": "b"}, "name='b' is read with source='tfds' only"),
    ({"source": "stdlib", "path": "a"}, "path='a' is not read with source='stdlib'"),
    ({"source": "tfds"}, "needs name="),
    ({"limit_bytes": 0}, "limit_bytes=0 must be at least 1"),
    ({"tokenizer": "gone.json"}, "tokenizer='gone.json' cannot be read"),
  ],
)
def test_arguments_that_do_not_fit(options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    data.load(**{"cache_dir": tmp_path, **options})


def test_limit(load, tmp_path):
  for i in range(8):
    (tmp_path / f"{i}.txt").write_text("\N{EURO SIGN}" * 100)
  corpus = load(tmp_path / "*.txt", limit_bytes=400)
  assert corpus.num_bytes == {"train": 399, "validation": 300}  # no third of a character
  assert [len(text) for text in documents(corpus, "train")] == [300, 99]
  assert corpus.fingerprint != load(tmp_path / "*.txt").fingerprint


def test_text_is_tokenised_once_until_it_changes(load, pattern, tmp_path, monkeypatch):
  corpus = load(pattern)
  with monkeypatch.context() as patch:
    patch.setattr(cache, "write_tokens", None)
    again = load(pattern)
  assert again.fingerprint == corpus.fingerprint
  np.testing.assert_array_equal(again.splits["train"].tokens, corpus.splits["train"].tokens)
  file = tmp_path / "text" / "000.txt"
  file.write_text(file.read_text().upper())
  os.utime(file, ns=(0, time.time_ns() + 10**9))  # coarse clocks
  assert load(pattern).fingerprint != corpus.fingerprint


def test_a_damaged_cache_is_named(load, pattern, tmp_path):
  load(pattern)
  (tokens,) = (tmp_path / "cache").glob("tokens-*/train.tokens")
  tokens.write_bytes(tokens.read_bytes()[:-1])
  with pytest.raises(OSError, match="tokens-text-.* is damaged .*delete the folder"):
    load(pattern)


def test_a_cache_that_cannot_be_written(load, pattern, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(OSError, match="cannot be written .*cache_dir="):
    load(pattern, cache_dir=tmp_path / "file" / "cache")


def test_a_full_disk(load, pattern, tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(OSError, match="no room for the prepared text .*free some"):
      load(pattern)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
  load(pattern)


def test_one_prepares_and_the_others_wait(tmp_path):
  built = []

  def build(folder):
    built.append(folder)
    time.sleep(0.1)
    (folder / "text").write_text("whole")

  target = tmp_path / "deep" / "target"
  stale = target.parent / ".target.incomplete-1"  # of a process that was killed
  stale.mkdir(parents=True)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    made = list(pool.map(lambda _: cache.prepare(target, build), range(4)))
  assert made == [target] * 4
  assert len(built) == 1
  assert (target / "text").read_text() == "whole"
  assert {path.name for path in target.parent.iterdir()} == {"target", ".target.lock"}


def test_the_default_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("MEMJAX_CACHE", str(tmp_path))
  assert cache.default_folder() == tmp_path
  monkeypatch.delenv("MEMJAX_CACHE")
  assert cache.default_folder().name == "memjax"


def test_bytes_as_tokens():
  tokenizer = data.load_tokenizer(None)
  text = "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve"
  assert tokenizer.encode(text).tolist() == list(text.encode())
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"
  assert tokenizer.dtype == np.uint8


@pytest.fixture
def saved(tmp_path):
  import tokenizers

  trained = tokenizers.ByteLevelBPETokenizer()
  trained.train_from_iterator([synthetic.text(5000)], vocab_size=300, show_progress=False)
  trained.enable_truncation(8)  # a setting that a saved file may carry
  trained.save(str(tmp_path / "tokenizer.json"))
  return tmp_path / "tokenizer.json"


def test_a_tokenizer_file(load, pattern, saved, tmp_path, monkeypatch):
  corpus = load(pattern, tokenizer=saved)
  assert 256 < corpus.vocab_size <= 300
  assert corpus.splits["train"].tokens.dtype == np.uint16
  assert corpus.num_tokens["train"] < 0.8 * corpus.num_bytes["train"]
  tokens, starts, _ = corpus.splits["train"]
  texts = [path.read_text() for path in (tmp_path / "text").iterdir()]
  assert corpus.tokenizer.decode(tokens[starts[3] : starts[4]]) in texts
  assert corpus.fingerprint != load(pattern).fingerprint
  monkeypatch.setattr("memjax.data.tokenizer.PIECE", 50)
  text = synthetic.text(2000)
  pieces = corpus.tokenizer.encode(text)
  assert corpus.tokenizer.decode(pieces) == text
  assert corpus.tokenizer.encode("").shape == (0,)


def test_a_file_that_is_no_tokenizer(load, pattern, tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="tokenizer=.* cannot be read .*Tokenizer.save"):
    load(pattern, tokenizer=tmp_path / "tokenizer.json")


def test_made_up_text_can_be_learned():
  text = synthetic.text(20_000, seed=1)
  assert len(text) == 20_000 and text == synthetic.text(20_000, seed=1) != synthetic.text(20_000)
  words = text.split()
  pairs = {(a, b) for a, b in zip(words[:-1], words[1:-1], strict=False)}
  assert len(pairs) <= 3 * len(set(synthetic.WORDS))
