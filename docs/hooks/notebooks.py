"""Notebooks as pages, with the outputs of a run.

`NOTEBOOKS` in the environment says which run: "small" (the setting of the tests), "full" (as a
reader runs it, minutes each) or "none". Runs are kept in build/notebooks by a hash of the notebook
and of the library, and a full one is shown wherever there is one.
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
FOLDER, CACHE = ROOT / "colab", ROOT / "build" / "notebooks"
CODE = ("memjax", "pallas_kernels", "experiments")
SETTINGS = ("none", "small", "full")
SAID = {
  "none": "Shown without its outputs.",
  "small": "Run in the small setting of the tests, a few steps: its numbers and pictures are not "
  "those of a trained model.",
  "full": "Run as it stands, on a CPU.",
}
INLINE = re.compile(r"(?<![\\$\w])\$([^\s$](?:[^$\n]*[^\s$])?)\$(?!\w)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def pages() -> tuple[list[tuple[str, str, str]], dict[str, bytes]]:
  """`(page, file, Markdown)` of every notebook, in order, and their pictures by path."""
  wanted = os.environ.get("NOTEBOOKS", "small")
  if wanted not in SETTINGS:
    raise ValueError(f"NOTEBOOKS={wanted!r} is not one of {', '.join(SETTINGS)}")
  found, images = [], {}
  for file in sorted(FOLDER.glob("*.ipynb")):
    book, setting = executed(file, wanted)
    text, shown = markdown(book, file.stem, setting)
    found.append((f"notebooks/{file.stem}.md", f"colab/{file.name}", text))
    images |= shown
  return found, images


def executed(file: pathlib.Path, wanted: str) -> tuple[dict, str]:
  """The notebook with outputs, and the setting that they are of."""
  key = _hash(file)
  kept = {s: CACHE / f"{file.stem}-{s}-{key}.json" for s in SETTINGS[1:]}
  for setting in ("full",) if wanted == "full" else ("full", "small"):
    if kept[setting].exists() and wanted != "none":
      return json.loads(kept[setting].read_text()), setting
  if wanted == "none":
    return json.loads(file.read_text()), "none"
  book = _run(file, wanted)
  CACHE.mkdir(parents=True, exist_ok=True)
  for old in CACHE.glob(f"{file.stem}-{wanted}-*.json"):
    old.unlink()
  kept[wanted].write_text(json.dumps(book))
  return book, wanted


def _hash(file: pathlib.Path) -> str:
  digest = hashlib.sha256(file.read_bytes())
  for name in CODE:
    for source in sorted((ROOT / name).rglob("*.py")):
      digest.update(source.read_bytes())
  return digest.hexdigest()[:16]


def _run(file: pathlib.Path, setting: str) -> dict:
  """Every cell in a process of its own, in an empty folder; a cell that fails ends the build."""
  import nbclient
  import nbformat

  book = nbformat.read(file, as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if setting == "small":  # compiled as the tests compile
      env |= {"MEMJAX_FAST": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    client = nbclient.NotebookClient(
      book, kernel_name="python3", startup_timeout=300, timeout=3600,
      resources={"metadata": {"path": folder}},
    )  # fmt: skip
    client.execute(env=env)
  return json.loads(nbformat.writes(book))


def markdown(book: dict, name: str, setting: str) -> tuple[str, dict[str, bytes]]:
  """A notebook's page, and its pictures by path from the site's root."""
  parts, images = [], {}
  for cell in book["cells"]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
      parts.append(math(_without_badge(text)))
    elif cell["cell_type"] == "code" and text.strip():
      parts.append(f"```python\n{text}\n```")
      for output in cell["outputs"]:
        parts.append(_output(output, name, images))
  title, _, rest = "\n\n".join(filter(None, parts)).partition("\n\n")
  note = f"*{SAID[setting]} The notebook is `colab/{name}.ipynb`.*"
  return f"{title}\n\n{note}\n\n{rest}\n", images


def _without_badge(text: str) -> str:
  return re.sub(
    r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)|<a [^>]*>\s*<img [^>]*colab-badge[^>]*>\s*</a>", "", text
  ).strip()


def _output(output: dict, name: str, images: dict[str, bytes]) -> str:
  if output["output_type"] == "stream":
    text = "".join(output["text"])
  elif output["output_type"] == "error":
    text = "\n".join(output["traceback"])
  else:
    data = output["data"]
    if "image/png" in data:
      path = f"notebooks/{name}-{len(images)}.png"
      images[path] = base64.b64decode("".join(data["image/png"]))
      return f"![A figure made by the cell above]({path.rpartition('/')[2]})"
    if "text/html" in data:
      return "".join(data["text/html"])
    text = "".join(data.get("text/plain", ""))
  lines = (line.rstrip("\r").rpartition("\r")[2] for line in ANSI.sub("", text).split("\n"))
  text = "\n".join(lines).rstrip()  # as a terminal shows it
  return f"```text\n{text}\n```" if text else ""


def math(text: str) -> str:
  """Formulas between dollars as MathML, which browsers show without a script."""
  if "$" not in text:
    return text
  from latex2mathml.converter import convert

  def block(match: re.Match) -> str:
    return f'<div class="formula">{convert(match[1], display="block")}</div>'

  def inline(match: re.Match) -> str:  # `<math>` at a line's start would be a block
    return f"<span>{convert(match[1])}</span>"

  pieces = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.S)
  for i in range(0, len(pieces), 2):
    pieces[i] = re.sub(r"\$\$(.+?)\$\$", block, pieces[i], flags=re.S)
    pieces[i] = INLINE.sub(inline, pieces[i])
  return "".join(pieces)
