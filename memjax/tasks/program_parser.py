"""The value of a program as `tasks.program_evaluation` writes it, by a reader of its characters in
plain Python: the independent half of that task's tests.

    level   = term ["+" term | "-" term | "*" term | "if" term ("<" | ">") term "else" term]
            | "x=" term "for[" digit "]x+=" term
    term    = digits | "(" level ")"
"""

import operator

ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class _Reader:
  def __init__(self, text: str):
    self.text, self.at = text, 0

  def next_is(self, word: str) -> bool:
    """Whether `word` comes next; then reads it."""
    found = self.text.startswith(word, self.at)
    self.at += len(word) * found
    return found

  def expect(self, word: str) -> None:
    if not self.next_is(word):
      raise ValueError(f"{self.text!r} should go on with {word!r} at {self.at}")

  def term(self) -> int:
    if self.next_is("("):
      value = self.level()
      self.expect(")")
      return value
    start = self.at
    while self.text[self.at : self.at + 1].isdigit():
      self.at += 1
    if start == self.at:
      raise ValueError(f"{self.text!r} should have a number at {self.at}")
    return int(self.text[start : self.at])

  def level(self) -> int:
    if self.next_is("x="):
      value = self.term()
      self.expect("for[")
      times = self.term()
      self.expect("]x+=")
      return value + times * self.term()
    first = self.term()
    for sign, function in ARITHMETIC.items():
      if self.next_is(sign):
        return function(first, self.term())
    if self.next_is("if"):
      left = self.term()
      less = self.next_is("<")
      if not less:
        self.expect(">")
      right = self.term()
      self.expect("else")
      other = self.term()
      return first if (left < right if less else left > right) else other
    return first


def value(text: str) -> int:
  """The number that a program makes, of any size.

  Raises:
    ValueError: it is no program.
  """
  reader = _Reader(text)
  found = reader.level()
  if reader.at != len(text):
    raise ValueError(f"{text!r} goes on after its end, at {reader.at}")
  return found
