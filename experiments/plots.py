"""Pictures of a run."""

import pathlib


def learning_curves(
  path: pathlib.Path, curves: dict[str, list[dict[str, float]]], title: str
) -> None:
  """Validation bits per byte over tokens and over seconds, one line a model, as a PNG.

  Args:
    path: where to write.   title: of the picture.
    curves: `{name: rows}`, rows with `tokens`, `seconds`, `validation_bits_per_byte`.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(1, 2, sharey=True)
  for panel, axis, label in zip(
    panels, ("tokens", "seconds"), ("training tokens", "training seconds"), strict=True
  ):
    for name, rows in curves.items():
      rows = [row for row in rows if "validation_bits_per_byte" in row]
      panel.plot(
        [row[axis] for row in rows],
        [row["validation_bits_per_byte"] for row in rows],
        marker=".",
        label=name,
      )
    panel.set_xlabel(label)
    panel.grid(alpha=0.3)
  panels[0].set_ylabel("validation bits per byte")
  panels[0].legend()
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
