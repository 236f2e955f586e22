"""The shape of the package: who may import whom, what is public, and what is never used."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import metajax
from metajax import presets
from metajax.algorithms import ALGORITHMS
from metajax.rules import RULES

PACKAGE = Path(metajax.__file__).parent

# Each layer imports from those above it and, inside a package, from itself. A module that stands
# higher than the rest of its package has a layer of its own.
LAYERS = [
    {"_version", "_kinks", "errors"},
    {"_checks"},
    {"types", "shutdown", "_alarms", "_text", "_imported", "_promotion", "_earlier"},
    {"parts"},
    {"_memory", "steps"},
    {"physics"},
    {"envs", "policies", "rules", "losses", "runs"},
    {"replay"},
    {"outer"},
    {"adaptation"},
    {"algorithms"},
    {"diagnostics", "reference_agents"},
    {"training"},
    {"_named_parts"},
    {"presets"},
    {"deployment", "export", "plotting", "rendering"},
    {"runs.load"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

PUBLIC = """
    Agent Algorithm Continuous Discrete Env EnvState Evaluation MetajaxError Policy PolicyOutput
    StepInput TaskBatch TaskDistribution TaskFamily TrainState Trajectory UpdateRule __version__
    adaptation_curve check_env evaluate load make rollout train

    a2c anil cavia dqn e_maml fomaml learned_optimizer maml maml_dqn meta_lstm meta_sgd mql
    off_policy_rl2 pearl ppo promp q_prop reinforce reptile rl2 sac snail td3 trpo varibad
    conditioned deterministic gru lstm mlp squashed transformer variational window
    decayed from_optax learned_lstm learned_mlp sgd sum_of_rules

    adaptation algorithms deployment diagnostics envs export losses outer plotting policies presets
    reference_agents rendering rules runs
"""

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def top(path: Path) -> str:
    """Return the module, or the package, directly below metajax."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(module: str) -> str:
    """Return the name in `LAYERS` of a module, "cli" of "cli.app" say."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), module)


def layer_of(path: Path) -> str:
    return layer(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """Return the dotted names of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            # `from metajax import x` imports the module x.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            of_layers = {name for name in names if name.removeprefix("metajax.") in LEVEL}
            found |= names if node.module == "metajax" else {node.module, *of_layers}
    return found


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path):
    here = layer_of(path)
    assert here in LEVEL, f"{here} has no layer: add it to the layout"
    for module in imported(path):
        top, _, rest = module.partition(".")
        if top == "metajax":
            assert rest, f"{name(path)} imports the whole package"
            there = layer(rest)
            assert there == here or LEVEL[there] < LEVEL[here], f"{name(path)} imports {module}"


def test_only_policies_know_the_neural_network_library():
    users = {top(path) for path in MODULES for m in imported(path) if m.split(".")[0] == "flax"}
    assert users == {"policies"}


def test_only_physics_and_renderings_know_the_engines():
    engines = {"mujoco", "brax"}
    users = {top(path) for path in MODULES for m in imported(path) if m.split(".")[0] in engines}
    assert users == {"physics", "rendering"}


def test_nothing_below_the_trainer_is_jitted():
    """The caller owns the boundary. Physics, slow to trace, only keeps its traces this way."""
    cached = {f"physics/{name}.py" for name in ("batching", "brax", "mujoco_state")}
    for path in MODULES:
        if LEVEL[layer_of(path)] < LEVEL["training"] and name(path) not in cached:
            used = {n.attr for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
            assert not used & {"jit", "pmap", "pjit"}, name(path)


def test_the_public_surface():
    assert dir(metajax) == metajax.__all__ == sorted(PUBLIC.split())
    for public in metajax.__all__:
        assert getattr(metajax, public).__doc__
    for name in ["adaptation", "algorithms", "envs", "losses", "outer", "policies", "rules"]:
        package = getattr(metajax, name)
        assert dir(package) == sorted(package.__all__)
    functions = [one for one in metajax.__all__ if isinstance(getattr(metajax, one), Callable)]
    modules = {top(path) for path in MODULES}
    assert "train" in functions and not modules & {*functions}
    with pytest.raises(AttributeError, match="metajax has no 'mamll'"):
        metajax.mamll  # noqa: B018


def test_every_algorithm_policy_and_rule_is_at_the_top_or_the_docstring_says_where():
    tables = (ALGORITHMS, presets.POLICIES, RULES)
    packages = (metajax.algorithms, metajax.policies, metajax.rules)
    elsewhere = []
    for table, package in zip(tables, packages, strict=True):
        for name, factory in table.items():
            name = name.replace("-", "_")
            assert getattr(package, name) is factory
            if getattr(metajax, name) is not factory:
                elsewhere.append(f"{package.__name__}.{name}")
    assert len(elsewhere) == 3
    assert all(f"`{name}`" in (metajax.__doc__ or "") for name in elsewhere)


def test_importing_the_package_leaves_slow_libraries_for_later():
    code = (
        "import sys, metajax\n"
        "assert not {'matplotlib', 'gymnasium', 'tyro'} & set(sys.modules)\n"
        "metajax.deployment.simulate, metajax.export.GymnasiumEnv, metajax.plotting.plot_run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"PRNGKey", "pickle", "system", "popen", "load_module", "allow_pickle"}


@pytest.mark.parametrize("path", [*MODULES, PACKAGE / "__init__.py"], ids=name)
def test_nothing_runs_data_as_code(path):
    for module in imported(path):
        assert module.split(".")[0] not in FORBIDDEN_MODULES, f"{name(path)} imports {module}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{name(path)}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_ATTRIBUTES, f"{name(path)}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.literal_eval(node.value) is False, f"{name(path)}:{node.lineno}"


def test_nothing_is_called_done():
    """It never says whether the value goes on: there are `terminated` and `truncated`."""
    for path in MODULES:
        if top(path) in {
            "types",
            "envs",
            "losses",
            "adaptation",
            "algorithms",
            "policies",
        }:
            nodes = list(ast.walk(tree(path)))
            names = {n.id for n in nodes if isinstance(n, ast.Name)}
            names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
            names |= {n.arg for n in nodes if isinstance(n, ast.arg)}
            assert not names & {"done", "dones"}, name(path)


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 450, 120
LONGER = {  # to be split; nothing comes to it
    "algorithms/maml.py:maml",
    "policies/attention.py:snail",
}


def outermost_functions(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from outermost_functions(child)


def test_files_and_functions_are_short():
    longer = set()
    for path in [*MODULES, PACKAGE / "__init__.py"]:
        if len(path.read_text().splitlines()) > MOST_LINES_OF_A_FILE:
            longer.add(name(path))
        for function in outermost_functions(tree(path)):
            if function.end_lineno - function.lineno >= MOST_LINES_OF_A_FUNCTION:
                longer.add(f"{name(path)}:{function.name}")
    assert longer == LONGER
