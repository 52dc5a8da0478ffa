"""Programs against a reader of their characters, and that reader against Python's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import program_parser
from memjax.tasks.program_evaluation import CHARACTERS, ProgramEvaluation
from memjax.tasks.task import TEST

TASK = ProgramEvaluation(length=5, nest=3)


@pytest.fixture(scope="module")
def programs():
  """Texts with what is due, and the digit places."""
  batch = jax.jit(lambda i: TASK.sample(0, TEST, i))(jnp.arange(10_000))
  inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
  letters = np.asarray([".", *CHARACTERS])
  texts = ["".join(row).split("~")[0] for row in letters[inputs]]
  due = ["".join(row[row != "."]) for row in letters[np.where(targets < 0, 0, targets)]]
  return texts, due


def test_answers_are_the_programs_values(programs):
  values = [program_parser.value(text) for text in programs[0]]
  assert [str(value % 10**6) for value in values] == programs[1]
  assert min(values) < 0 < 10**12 < max(values)
  assert max(map(len, programs[1])) == 6 == TASK.answer
  for sign in "+-*<>f":  # each of the levels draws among all
    assert abs(sum(text.count(sign) for text in programs[0]) - 6000) < 7500
  assert all(text.count("(") == 2 for text in programs[0])


def test_the_reader_agrees_with_python(programs):
  checked = 0
  for text in programs[0][:2000]:
    if "for" not in text:
      spaced = text.replace("if", " if ").replace("else", " else ")
      assert program_parser.value(text) == eval(spaced)  # digits and operators alone
      checked += 1
  assert checked > 500
  assert program_parser.value("x=(3*4)for[5]x+=10") == 62
  for wrong in ("", "12+", "1+2)", "(1+2", "1if2else3", "x=1for[2]x+"):
    with pytest.raises(ValueError, match="should|goes on"):
      program_parser.value(wrong)


def test_the_floor_is_the_commonest_digit_s(programs):
  places = [[text[i] for text in programs[1] if len(text) > i] for i in range(6)]
  right = sum(max(map(place.count, set(place))) for place in places)
  assert abs(right / sum(map(len, places)) - TASK.floor) < 0.01
  assert abs(ProgramEvaluation(group="copy", nest=1).floor - (1 / 9 + 0.4) / 5) < 0.01


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"length": 8}, "length=8 must be at most 7"),
    ({"group": "copy"}, "nest=2 must be 1 with group='copy'"),
    ({"group": "sum"}, "group='sum' is not one of"),
  ],
)
def test_what_cannot_be_asked_is_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    ProgramEvaluation(**settings)
