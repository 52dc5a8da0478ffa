"""The report: one file that parses, asks for nothing, holds the numbers, and disarms what a run
wrote."""

import html.parser
import json
import re

import pytest

from experiments.metrics import MetricsWriter, Samples
from experiments.reporting.charts import Line, chart, number
from experiments.reporting.collect import collect
from experiments.reporting.page import page
from tests.experiments.conftest import command, run

VOID = {"meta", "img"}
HOSTILE = '</pre><script>alert("1")</script><img src=x onerror=alert(2)> & \x00\x1b[31m \ud800'


class Parser(html.parser.HTMLParser):
  """Elements, attributes and text of a page; a tag that is not closed in order is an error."""

  def __init__(self, source: str):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], []
    self.feed(source)
    self.close()
    assert not self.open, f"left open: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
    self.open.pop()

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.text.append(data)


def parsed(workdir):
  source = page(collect(workdir))
  made = Parser(source)
  source.encode()  # nothing in it that a file cannot hold
  assert not {"script", "link", "iframe", "object", "form", "base"} & set(made.tags)
  for tag, name, value in made.attributes:
    assert not name.startswith("on"), (tag, name)
    if name in ("src", "href", "srcset", "data", "action", "poster", "style"):
      assert (value or "").startswith(("data:image/png;base64,", "width:")), (tag, name, value)
  style = source[source.index("<style>") : source.index("</style>")]
  assert "url(" not in style and "@import" not in style
  assert re.findall(r"https?://", source) == []
  return made


def write_run(workdir, steps=40, note="text"):
  """A run of two models as the recipes leave one, without training."""
  workdir.mkdir(parents=True)
  config = {"job": "experiments.jobs.text", "steps": 40, "model": {"dim": 16, "prompt": note}}
  (workdir / "config.json").write_text(json.dumps(config))
  environment = {"time": "2026-01-02T03:04:05+00:00", "devices": ["cpu:0"], "command": [note]}
  (workdir / "environment.json").write_text(json.dumps(environment))
  table = f"# Title\n\n| model | bits |\n|---|---|\n| {note} | 2.718 |\n"
  (workdir / "report.md").write_bytes(table.encode(errors="replace"))
  (workdir / "curves.png").write_bytes(b"\x89PNG...")
  for number_, name in enumerate(("memory_plus", "dense_twin")):
    writer = MetricsWriter(workdir / name)
    for step in range(1, steps + 1):
      row = {"tokens": 64 * step, "seconds": step / 4, "train_bits_per_byte": 8 / step + number_}
      writer.write(step, row | {"gradient_norm": 1 / step, "tokens_per_second": 256, "mfu": 0.4321})
      if step % 10 == 0:
        usage = {f"memory/{layer}/slots_used": 0.1 * layer for layer in (2, 5)}
        row = {"validation_bits_per_byte": 7.123 + number_, **({} if number_ else usage)}
        writer.write(step, {"tokens": 64 * step, "seconds": step / 4, **row})
    writer.close()
    samples = Samples(workdir / name)
    samples.write(10, "def ", "early words")
    samples.write(20, "def ", note)
    saved = workdir / name / "checkpoints" / "20"
    (saved / "info").mkdir(parents=True)
    (saved / "arrays").write_bytes(bytes(2_500_000))
    info = {"json": json.dumps({"metric": 4.56})}
    (saved / "info" / "metadata").write_text(json.dumps(info))
  return workdir


def test_the_numbers_are_there(tmp_path):
  made = parsed(write_run(tmp_path / "run"))
  text = " ".join(" ".join(made.text).split())
  for words in (
    "run", "recipe text", "memory_plus", "dense_twin", "40 of 40", "7.123", "8.123", "256",
    "43.2%", "early words", "layer 2", "layer 5", "50%", "4.56", "2.5 MB", "model.dim", "2.718",
    "Loss and quality", "model-FLOPs utilisation", "gradient norm", "slots used",
  ):  # fmt: skip
    assert words in text, words
  assert made.tags.count("svg") == 8  # two losses over two axes, two of speed, gradients, memory
  assert made.tags.count("img") == 1


def test_what_a_run_wrote_is_disarmed(tmp_path):
  """In a sample, the configuration, the environment, the report, names of models."""
  workdir = write_run(tmp_path / "run", note=HOSTILE)
  (workdir / "dense_twin").rename(workdir / "<script>alert(3)<")
  made = parsed(workdir)
  text = "".join(made.text)
  assert '<script>alert("1")</script>' in text  # as words
  assert "<script>alert(3)<" in text and "\x00" not in text


@pytest.mark.parametrize("missing", ["config.json", "environment.json", "report.md", "curves.png"])
def test_a_piece_may_be_missing(tmp_path, missing):
  workdir = write_run(tmp_path / "run")
  (workdir / missing).unlink()
  text = " ".join(parsed(workdir).text)
  assert "7.123" in text
  assert (f"there is no {missing}" in text) == missing.endswith(".json")


def test_damaged_and_begun_runs(tmp_path):
  workdir = write_run(tmp_path / "run", steps=3)  # before the first evaluation
  (workdir / "config.json").write_text('{"steps": ')
  with (workdir / "memory_plus" / "metrics.csv").open("a") as file:
    file.write("4,25")
  (workdir / "memory_plus" / "checkpoints" / "20" / "info" / "metadata").write_text("[")
  (workdir / "dense_twin" / "samples.jsonl").write_text('{"step": "x"}\nnonsense\n')
  (workdir / "dense_twin" / "metrics.csv").write_text("step,loss\n1,nan\n2,inf\n")
  text = " ".join(parsed(workdir).text)
  assert "config.json cannot be read" in text and "train bits per byte" in text
  empty = tmp_path / "empty"
  empty.mkdir()
  assert "no model has written anything yet" in " ".join(parsed(empty).text)


def test_charts_thin_out_and_say_when_they_are_logarithmic():
  many = Line("a", [(float(x), 1e-4 if x == 5000 else 1.0 + x) for x in range(10_000)])
  drawn = chart("t", [many, Line("none", [])], "step")
  assert "(log)" in drawn and drawn.count("L") < 450 and "none" not in drawn
  assert chart("t", [Line("a", [(1, float("nan"))])], "step") == ""
  flat = chart("t", [Line("a", [(1, 2.0)])], "step")
  assert "nan" not in flat and "circle" in flat
  assert [number(v) for v in (0, 1234567, 0.00012, 98.76)] == ["0", "1.235M", "0.00012", "98.76"]


def test_the_command_writes_the_page(finished, tmp_path):
  workdir, _ = finished
  out = tmp_path / "page.html"
  printed = run([*command("report", workdir), f"--out={out}"]).stdout
  text = " ".join(Parser(out.read_text()).text)
  assert printed.strip() == str(out) and "memory_plus" in text and "12 of 12" in text
  assert "slots used" in text and "Samples" in text and "model.memory_keys" in text
  done = run(command("report", tmp_path), expect=2)
  assert "is it the folder of a run?" in done.stderr and "Traceback" not in done.stderr
