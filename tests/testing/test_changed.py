"""Rows whose files changed against the main branch get every law at once."""

import pytest

from tests.registry import rows
from tests.testing import changed as module

ROWS = {row.name: row for row in rows()}


@pytest.fixture
def git(monkeypatch):
  """Sets what `git diff` answers; None: there is no git."""

  def answer(files):
    def fake(command, *rest):
      if files is None:
        raise FileNotFoundError("git")
      return {"merge-base": ["abc"], "diff": files, "ls-files": []}[command]

    monkeypatch.setattr(module, "_git", fake)
    module.changed_files.cache_clear()

  yield answer
  module.changed_files.cache_clear()


def chosen(*names):
  return [name for name in names if module.changed(ROWS[name])]


def test_rows_of_a_changed_file_are_chosen_also_through_what_they_hold(git):
  git(["memjax/transformer/feed_forward.py", "README.md"])
  assert chosen("feed-forward", "stack-attention", "ntm-lstm") == [
    "feed-forward",
    "stack-attention",
  ]


def test_a_row_names_further_files(git):
  git(["pallas_kernels/product_key_topk/chunk.py"])
  assert chosen("product-keys-rms", "ntm-lstm") == ["product-keys-rms"]


@pytest.mark.parametrize("files", [None, [], ["memjax/core/memory.py", "docs/index.md"]])
def test_nothing_is_chosen_without_git_or_for_what_all_share(git, files):
  git(files)
  assert chosen("feed-forward", "product-keys-rms") == []
