"""API pages, made of the library's docstrings and sources.

A page for every file with public names, a section for every package: what `__all__` names; where
there is none, and in modules that it names, whatever has a docstring and no underscore.
"""

import ast
import collections
import dataclasses
import importlib
import inspect
import pkgutil
import posixpath
import re
import textwrap
from collections.abc import Sequence
from types import ModuleType

import memjax
import pallas_kernels
from docs.hooks import docstrings

# Modules that `__all__` does not name and the guides do.
MORE = {"memjax.core": ("layers", "sharding", "usage")}
INTERNAL = {"pallas_kernels.compat", "memjax.tasks.draw"}
OWN = ("memjax", "pallas_kernels")
WIDTH = 92  # of a signature


@dataclasses.dataclass
class Page:
  """One module.

  Attributes:
    module: it.   uri: of the page, from the site's root.
    names: what is shown of it, in order: objects by name.
  """

  module: ModuleType
  uri: str
  names: dict[str, object]


def packages() -> list[str]:
  """What has a section."""
  parts = sorted(part.name for part in pkgutil.iter_modules(memjax.__path__))
  return [*(f"memjax.{part}" for part in parts), pallas_kernels.__name__]


def sections(names: Sequence[str] = ()) -> dict[str, list[Page]]:
  """Pages by package, of all or some; the package's own first. A module has but that one."""
  return {name: _pages(name) for name in names or packages()}


def _pages(name: str) -> list[Page]:
  package = importlib.import_module(name)
  if not hasattr(package, "__path__"):
    return [Page(package, f"api/{name}.md", _public(package))]
  by_module: dict[str, dict[str, object]] = collections.defaultdict(dict)
  constants = {}
  for key in getattr(package, "__all__", _submodules(package)):
    value = getattr(package, key, None) or importlib.import_module(f"{name}.{key}")
    if inspect.ismodule(value):
      by_module[value.__name__] |= _public(value)
    elif str(getattr(value, "__module__", "")).startswith(OWN):
      by_module[value.__module__][key] = value
    else:
      constants[key] = value
  for key in MORE.get(name, ()):
    by_module[f"{name}.{key}"] |= _public(importlib.import_module(f"{name}.{key}"))
  pages = [Page(package, f"api/{name}/index.md", constants | by_module.pop(name, {}))]
  for module, names in sorted(by_module.items()):
    if names and module not in INTERNAL:
      uri = f"api/{name}/{module.removeprefix(f'{name}.')}.md"
      pages.append(Page(importlib.import_module(module), uri, names))
  return pages


def _submodules(package: ModuleType) -> list[str]:
  return [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]


def _public(module: ModuleType) -> dict[str, object]:
  """What `__all__` names; else the module's own functions and classes."""
  if hasattr(module, "__all__"):
    return {name: getattr(module, name) for name in module.__all__}
  own = {
    name: value
    for name, value in vars(module).items()
    if callable(value) and not name.startswith("_") and value.__doc__
    and getattr(value, "__module__", None) == module.__name__
  }  # fmt: skip
  return own


class Names:
  """Where the API pages tell of a name; `link` makes a link of a piece of code."""

  def __init__(self, found: dict[str, list[Page]]):
    self.places: dict[str, set[str]] = collections.defaultdict(set)
    for pages in found.values():
      for page in pages:
        self._add(page.module.__name__, page.uri, 1 if len(pages) == 1 else 2)
        for name, value in page.names.items():
          self._add(f"{page.module.__name__}.{name}", f"{page.uri}#{name}")
          for method in methods(value):
            place = f"{page.uri}#{anchor(name, method)}"
            self._add(f"{page.module.__name__}.{name}.{method}", place, 2)
    self.short = {  # memjax.slots.LM2, which stands in memjax.slots.lm2
      f"{section}.{name}": f"{page.uri}#{name}"
      for section, pages in found.items()
      for page in pages
      for name in page.names
    }

  def _add(self, name: str, place: str, least: int = 1) -> None:
    """A name by its last parts, at least so many of them."""
    parts = name.split(".")
    for start in range(len(parts) - least + 1):
      self.places[".".join(parts[start:])].add(place)

  def find(self, name: str, page: str) -> str | None:
    """The place of a name as a page writes it; None if it could be several."""
    for full in (name, f"memjax.{name}"):
      if full in self.short:
        return self.short[full]
    places = self.places.get(name, set())
    near = {p for p in places if p.partition("#")[0] == page}
    near = near or {p for p in places if posixpath.dirname(p) == posixpath.dirname(page)}
    return (near or places).copy().pop() if len(near or places) == 1 else None

  def link(self, code: str, page: str, here: str = "") -> str:
    """`code` with its backticks, as a link from a page if it names something but `here`."""
    name = re.fullmatch(r"`([A-Za-z_][\w.]*)(?:\(\))?`", code)
    place = self.find(name[1], page) if name else None
    if place is None or place == f"{page}#{here}":
      return code
    uri, _, anchor = place.partition("#")
    target = posixpath.relpath(uri, posixpath.dirname(page)) if uri != page else ""
    return f"[{code}]({target}{'#' if anchor else ''}{anchor})"


def methods(value: object) -> dict[str, object]:
  """Public methods and properties of a class that say what they do."""
  if not inspect.isclass(value):
    return {}
  found = {}
  for name, member in vars(value).items():
    function = getattr(member, "__func__", getattr(member, "fget", member))
    documented = inspect.isfunction(function) and function.__doc__
    if documented and (not name.startswith("_") or name == "__call__"):
      found[name] = function
  return found


def anchor(name: str, method: str) -> str:
  """Of a method on its page; underscores at both ends would be emphasis."""
  return f"{name}.{method.strip('_')}"


def markdown(page: Page, names: Names, also: Sequence[Page] = ()) -> str:
  """A page; on a package's own, a table of what the pages of its modules hold."""
  module = page.module.__name__

  def link(here: str, arguments: Sequence[str] = ()):
    """Links from one place; its own arguments are no names of others."""
    own = {f"`{re.split(r'[:=]', a)[0].strip('* ')}`" for a in arguments}
    return lambda code: code if code in own else names.link(code, page.uri, here)

  parts = [f"# {module}", docstrings.markdown(page.module.__doc__, link(""))]
  rows = [
    f"| [`{name}`]({posixpath.relpath(p.uri, posixpath.dirname(page.uri))}#{name}) "
    f"| {_first_line(value, link(name))} |"
    for p in also
    for name, value in p.names.items()
  ]
  if rows:
    parts.append("\n".join(["| name | what it is |", "|---|---|", *rows]))
  for name, value in page.names.items():
    parts += [f"## `{name}` {{ #{name} }}", _signature(name, value)]
    if callable(value):
      parts.append(docstrings.markdown(value.__doc__, link(name, _head(value)[1])))
    for method, function in methods(value).items():
      here, is_property = anchor(name, method), isinstance(vars(value)[method], property)
      title = f"### `{method}`{' (property)' if is_property else ''} {{ #{here} }}"
      parts += [title, "" if is_property else _signature(method, function)]
      parts.append(docstrings.markdown(function.__doc__, link(here, _head(function)[1])))
  return "\n\n".join(part for part in parts if part) + "\n"


def is_memory(value: object) -> bool:
  """Whether it is a class of memories."""
  return inspect.isclass(value) and issubclass(value, memjax.Memory)


def _first_line(value: object, link) -> str:
  text = inspect.cleandoc((value.__doc__ or "") if callable(value) else "")
  line = " ".join(text.partition("\n\n")[0].split())
  return docstrings.prose(re.split(r"(?<=[.;:]) ", line)[0].rstrip(";:"), link)


def _signature(name: str, value: object) -> str:
  if not callable(value):
    return f"```python\n{name} = {_shown(value)}\n```"
  head, arguments, returns = _head(value)
  line = f"{head}{name}({', '.join(arguments)}){returns}"
  if len(line) > WIDTH:
    inner = textwrap.fill(
      "\0".join(a.replace(" ", "\1") for a in arguments).replace("\0", ", "), WIDTH - 2,
      break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    inner = textwrap.indent(inner.replace("\1", " "), "    ")
    line = f"{head}{name}(\n{inner},\n){returns}"
  return f"```python\n{_quoted(line)}\n```"


def _head(value: object) -> tuple[str, list[str], str]:
  """What stands before a name, its arguments, and what follows them."""
  if inspect.isclass(value):
    return "class ", _constructor(value), ""
  node = _definition(value)
  if not isinstance(node, ast.FunctionDef):
    return "", [], ""
  return "", _arguments(node), f" -> {ast.unparse(node.returns)}" if node.returns else ""


def _quoted(line: str) -> str:
  """With the quotes of the sources, where `ast.unparse` has its own."""
  return line if '"' in line else line.replace("'", '"')


def _shown(value: object) -> str:
  keys = tuple(value) if isinstance(value, dict) else value
  return textwrap.shorten(repr(keys), 300)


def _definition(value: object):
  try:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
  except (OSError, TypeError):
    return None
  node = ast.parse(source).body[0]
  return node if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def _arguments(node: ast.FunctionDef) -> list[str]:
  """As they are written, without `self`."""
  args = node.args
  plain = [*args.posonlyargs, *args.args]
  defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
  out = [_argument(a, d) for a, d in zip(plain, defaults, strict=True)]
  if args.vararg:
    out.append("*" + _argument(args.vararg, None))
  elif args.kwonlyargs:
    out.append("*")
  out += [_argument(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
  if args.kwarg:
    out.append("**" + _argument(args.kwarg, None))
  return [a for a in out if a not in ("self", "cls")]


def _argument(arg: ast.arg, default) -> str:
  text = arg.arg + (f": {ast.unparse(arg.annotation)}" if arg.annotation else "")
  if default is None:
    return text
  return f"{text}{' = ' if arg.annotation else '='}{ast.unparse(default)}"


def _constructor(cls: type) -> list[str]:
  """Arguments of a class: those of the nearest `__init__`, or a record's fields."""
  for base in cls.__mro__:
    if not base.__module__.startswith(OWN):
      continue
    node = _definition(base)
    if node is None:
      return []
    for item in node.body:
      if isinstance(item, ast.FunctionDef) and item.name == "__init__":
        return _arguments(item)
    if dataclasses.is_dataclass(cls) or issubclass(cls, tuple):
      return _fields(cls)
  return []


def _fields(cls: type) -> list[str]:
  found: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    node = _definition(base) if base.__module__.startswith(OWN) else None
    for item in node.body if node else ():
      if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        if "ClassVar" in ast.unparse(item.annotation):
          continue
        text = f"{item.target.id}: {ast.unparse(item.annotation)}"
        value = ast.unparse(item.value) if item.value else ""
        plain = value and not value.startswith(("leaf(", "dataclasses.field(", "field("))
        found[item.target.id] = f"{text} = {value}" if plain else text
  return list(found.values())
