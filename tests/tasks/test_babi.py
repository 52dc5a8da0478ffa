"""The bAbI loader on files of its own."""

import numpy as np
import pytest

from memjax.tasks import babi

TEXT = """1 Ann went to the hall.
2 Bob took the cup there.
3 Where is Ann? \thall\t1
4 Bob moved to the barn.
5 Where is the cup? \tbarn\t2 4
1 Bob took the cup.
2 What does Bob hold?\tcup,hat\t1
"""


def test_examples_are_the_statements_before_a_question():
  first, second, third = babi.parse(TEXT)
  hall, cup, barn = (babi.words(line[2:]) for line in TEXT.splitlines()[:4] if "?" not in line)
  assert hall == ("ann", "went", "to", "the", "hall")
  assert first == babi.Example((hall, cup), ("where", "is", "ann"), "hall", (0,))
  assert second == babi.Example((hall, cup, barn), ("where", "is", "the", "cup"), "barn", (1, 2))
  assert third.story == (("bob", "took", "the", "cup"),) and third.answer == "cup,hat"


@pytest.mark.parametrize("line", ["no number", "1 Where?\thall\t7", "1"])
def test_a_line_of_another_form_is_named(line):
  with pytest.raises(babi.BabiError, match=r"file, line 8, is not a bAbI line"):
    babi.parse(TEXT + line, "file")


def test_files_are_found_by_task_and_split(tmp_path):
  (tmp_path / "qa2_something_train.txt").write_text(TEXT)
  assert len(babi.load(tmp_path, 2, "train")) == 3
  with pytest.raises(babi.BabiError, match=r"holds 0 files qa2_\*_test.txt"):
    babi.load(tmp_path, 2, "test")
  (tmp_path / "qa3_bad_test.txt").write_bytes(b"1 caf\xe9.\n")
  with pytest.raises(babi.BabiError, match="not UTF-8"):
    babi.load(tmp_path, 3, "test")


def test_arrays_hold_the_last_statements_most_recent_first():
  examples = babi.parse(TEXT)
  known, longest = babi.vocabulary(examples)
  assert longest == 5 and len(known) == 1 + len(set(known.ids))
  questions = babi.to_arrays({7: examples}, known, slots=2, length=longest)
  back = {number: word for word, number in known.ids.items()}

  def text(ids):
    return " ".join(back[i] for i in ids if i)

  stories = [[text(questions.sentences[i]) for i in row] for row in questions.story]
  assert stories[1] == ["bob moved to the barn", "bob took the cup there"]
  assert stories[2] == ["bob took the cup", ""]
  np.testing.assert_array_equal(questions.count, [2, 2, 1])
  assert [text(q) for q in questions.question][0] == "where is ann"
  assert [back[a] for a in questions.answer] == ["hall", "barn", "cup,hat"]
  np.testing.assert_array_equal(questions.task, 7)
  np.testing.assert_array_equal(questions.take([2]).story, questions.story[2:])
