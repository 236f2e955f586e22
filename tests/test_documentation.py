"""What is written is true: examples run, README keeps its size, and types are shipped."""

import ast
import doctest
import inspect
import re
import tomllib
import types
from pathlib import Path

import jax
import pytest

import metajax
from metajax import presets
from metajax._named_parts import NAMED, Choice, options_with
from metajax.algorithms import ALGORITHMS
from metajax.cli import options as commands
from metajax.cli.arguments import help_of
from metajax.envs import FAMILIES

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))


def described():
    """Return every public function, class and module by its shortest name."""
    found, waiting = {}, [metajax]
    while waiting:
        module = waiting.pop(0)
        found[module.__name__] = module
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                waiting += [value] if value.__name__ not in found else []
            elif (inspect.isfunction(value) or inspect.isclass(value)) and all(
                value is not other for other in found.values()
            ):
                found[f"{module.__name__}.{name}"] = value
    return found


EXAMPLES = {
    name: text
    for name, value in described().items()
    if ">>>" in (text := inspect.getdoc(value) or "")
}


def test_the_main_names_have_an_example():
    main = "evaluate gru make maml mlp rl2 rollout sgd train"
    assert {"metajax", *(f"metajax.{name}" for name in main.split())} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_what_it_says(name):
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, None)
    failures = []
    with jax.numpy_rank_promotion("allow"):  # as users have it
        doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S)


def page(path):
    return str(path.relative_to(ROOT))


# By what it says: the same code on two pages runs once.
CODE = {"\n".join(python_blocks(path)): path for path in [*DOCS, ROOT / "README.md"]}


@pytest.mark.slow
@pytest.mark.parametrize("code", [c for c in CODE if c], ids=lambda code: page(CODE[code]))
def test_the_code_of_a_page_runs_from_top_to_bottom(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = code.replace("iterations=50", "iterations=1, tasks=4")  # the rest says no more
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(compile(script, "page", "exec"), {"__name__": "__main__"})


def every(options):
    """Return the dotted names of options, with those of all parts that could be chosen."""
    for name, option in options.items():
        yield name
        if isinstance(option, Choice):
            for part, factory in NAMED[option.kind].items():
                its = options_with(part, factory, values={}, chosen={}, positional=True)
                yield from (f"{name}.{within}" for within in every(its))


def is_own(flag, path, known):
    """Whether a flag is an option of what a page makes itself, or of a part within that."""
    nodes = [n for block in python_blocks(path) for n in ast.walk(ast.parse(block))]
    own = {n.arg.replace("_", "-") for n in nodes if isinstance(n, ast.arg) and n.annotation}
    words = flag.removeprefix("--").split(".")
    without = ("--" + ".".join(words[:i] + words[i + 1 :]) for i, w in enumerate(words) if w in own)
    return words[-1] in own or any(shorter in known for shorter in without)


def test_pages_name_options_that_exist():
    known = {"--help", "--run-directory", "--policy-name", "--step"}  # of no factory
    for algorithm in ALGORITHMS:
        for policy in presets.policies(algorithm):
            for family in FAMILIES if algorithm == "maml" else ["point-goal"]:
                for group, options in presets.options(algorithm, family, policy).items():
                    prefix = f"{group}." if group in ("policy", "evaluation") else ""
                    known |= {f"--{prefix}{name.replace('_', '-')}" for name in every(options)}
    named = set()
    for path in [ROOT / "README.md", *DOCS]:
        for span in re.findall(r"```bash\n.*?^```$|`[^`]+`", path.read_text(), re.M | re.S):
            flags = {flag.rstrip(".") for flag in re.findall(r"(?<![\w-])--[a-z][a-z.-]*", span)}
            named |= {flag for flag in flags if flag in known or not is_own(flag, path, known)}
    assert {"--keep", "--backend"} <= named  # what is looked for is found
    assert named <= known | {flag for flag in named if flag.startswith("--xla")}


def test_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_types_are_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in settings["package-data"]["metajax"]
    assert (Path(metajax.__file__).parent / "py.typed").exists()


def factories():
    """Return everything whose arguments are options of the command line, by name."""
    found = {f"algorithm {name}": factory for name, factory in ALGORITHMS.items()}
    found |= {f"policy {name}": factory for name, factory in presets.POLICIES.items()}
    found |= {f"family {name}": spec.factory for name, spec in FAMILIES.items()}
    for known in NAMED.values():
        found |= {f"part {name}": factory for name, factory in known.items()}
    training = presets.factories("maml", "point-goal")
    found |= {group: training[group] for group in ("training", "evaluation")}
    classes = (value for value in vars(commands).values() if inspect.isclass(value))
    found |= {kind.__name__: kind for kind in classes if kind.__name__.endswith("Options")}
    return found


@pytest.mark.parametrize("name", factories())
def test_what_an_option_is_stands_at_the_start_of_its_help(name):
    """A noun phrase: "learning rate of Adam", where "of Adam" would be a riddle."""
    factory = factories()[name]
    riddle = (
        r"(of|per|to|on|from|with|in|that|for|likewise|where|whose|how|which|what|after|before)\b"
    )
    texts = help_of(factory)
    assert texts or not inspect.signature(factory).parameters
    assert not [option for option, text in texts.items() if re.match(riddle, text)]
