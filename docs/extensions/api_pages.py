"""Pages of the API, one for each public module, written from what `__all__` holds.

A name that stands in several modules is described once, where it is shortest, and every other way
of naming it leads there.
"""

import importlib
import inspect
import re
import shutil
import types
from pathlib import Path

from sphinx.util.nodes import make_refnode

import metajax

# What parts of one's own are written with.
ALSO_PUBLIC = ("metajax.parts", "metajax.runs.load", "metajax.types")


def public_names(module: types.ModuleType) -> list[str]:
    """Return the public names of a module: its `__all__`, or what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return [name for name in names if not name.startswith("_")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]


def public_objects() -> tuple[dict[str, list[str]], dict[int, str]]:
    """Return what each module's page describes, and the name of each object by its `id`."""
    pages: dict[str, list[str]] = {}
    canonical: dict[int, str] = {}
    waiting = [metajax, *map(importlib.import_module, ALSO_PUBLIC)]
    while waiting:
        module = waiting.pop(0)
        canonical[id(module)] = module.__name__
        pages[module.__name__] = []
        for name in public_names(module):
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                if value.__name__ not in pages and value not in waiting:
                    waiting.append(value)
            elif not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            elif value.__doc__ and id(value) not in canonical:
                canonical[id(value)] = f"{module.__name__}.{name}"
                pages[module.__name__].append(name)
    return pages, canonical


def described_methods(cls: type) -> list[str]:
    """Return the public methods and properties that a class defines and describes."""
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_")
        and isinstance(value, (types.FunctionType, property))
        and value.__doc__
    ]


def entry(name: str, value) -> str:
    """Return the directive that describes a public object."""
    if not inspect.isclass(value):
        return f".. autofunction:: {name}\n"
    methods = ", ".join(described_methods(value))
    return f".. autoclass:: {name}\n" + (f"   :members: {methods}\n" if methods else "")


def page(module_name: str, names: list[str], canonical: dict[int, str]) -> str:
    """Return the page of a module: what it describes, and what it has from elsewhere."""
    module = importlib.import_module(module_name)
    title = f"{module_name}\n{'=' * len(module_name)}\n\n"
    text = title + f".. automodule:: {module_name}\n\n"
    elsewhere = [
        canonical[id(getattr(module, name))]
        for name in public_names(module)
        if id(getattr(module, name)) in canonical and name not in names
    ]
    if elsewhere:
        links = ", ".join(f":py:obj:`{name}`" for name in sorted(elsewhere))
        text += f"Also here: {links}.\n\n"
    values = {name: getattr(module, name) for name in sorted(names)}
    for heading, kind in (("Functions", False), ("Classes", True)):
        chosen = [n for n, value in values.items() if inspect.isclass(value) == kind]
        if chosen:
            text += f"{heading}\n{'-' * len(heading)}\n\n"
            text += "\n".join(entry(f"{module_name}.{name}", values[name]) for name in chosen)
            text += "\n"
    return text


def write_pages(app) -> None:
    """Write the pages of the API, and copy the notebooks to where Sphinx looks for them."""
    source = Path(app.srcdir)
    pages, app.canonical_names = public_objects()
    for name, names in pages.items():
        write(source / "api" / f"{name}.rst", page(name, names, app.canonical_names))
    listed = "\n".join(f"   {name}" for name in sorted(pages))
    title = "API\n===\n\nEvery public name, by module. Its source is a click away.\n\n"
    write(
        source / "api" / "index.rst",
        f"{title}.. toctree::\n   :maxdepth: 1\n   :titlesonly:\n\n{listed}\n",
    )
    for notebook in sorted((source.parent / "notebooks").glob("*.ipynb")):
        (source / "notebooks").mkdir(exist_ok=True)
        shutil.copy2(notebook, source / "notebooks" / notebook.name)


def write(path: Path, text: str) -> None:
    """Write a page, unless it is there as it is: Sphinx then need not read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def imported(dotted: str):
    """Return the object of a dotted name, or None."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                value = getattr(value, part)
            return value
        except (ImportError, AttributeError, ValueError):
            continue
    return None


def resolve(app, env, node, content):
    """Find what a name means where it is used: in its module, in the package, or as it stands."""
    if node.get("refdomain") != "py":
        return None
    target = re.match(r"[\w.]*", node["reftarget"])[0]  # of `maml(...)` and `tasks[task]`, too
    module, cls = node.get("py:module"), node.get("py:class")
    home = imported(".".join(filter(None, (module, cls)))) if module else None
    source = getattr(home, "__module__", None)
    candidates = [f"{prefix}.{target}" for prefix in (module, source, "metajax") if prefix]
    if target.split(".")[0] == "metajax":
        candidates = [target]
    for candidate in candidates:
        value = imported(candidate)
        if value is None:
            continue
        name = app.canonical_names.get(id(value))
        if name is None:
            return content  # there is such a thing, but it has no entry of its own
        found = env.get_domain("py").objects.get(name) or env.get_domain("py").modules.get(name)
        if found is not None:
            return make_refnode(
                app.builder, node["refdoc"], found.docname, found.node_id, content, name
            )
    return None


def escape_shapes(app, what, name, value, options, lines) -> None:
    """Keep the stars of shapes like `*batch time` from becoming emphasis."""
    lines[:] = [
        re.sub(r"(?<!\\)\*", r"\*", line) if line.startswith(":vartype") else line for line in lines
    ]


def setup(app):
    """Connect all of it to the build."""
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)  # after napoleon
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
