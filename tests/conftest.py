"""Settings for every test: strict shapes, four CPU devices, types checked at run time."""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share an accelerator
# Most of these programs run for milliseconds: compiling them well costs more than it saves. What
# is set already is kept, so `XLA_FLAGS= pytest` tests what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)
jax.devices()  # so that no test, run alone, asks for another number

# Shapes and types of arguments and results are checked in these modules. Those that define pytree
# dataclasses are left out: JAX builds such objects from shapes, keys and placeholders too.
install_import_hook(
    [
        "metajax.outer.trust_region",
        "metajax.envs.families.ant",
        "metajax.envs.families.bandit",
        "metajax.envs.families.classic",
        "metajax.envs.families.dynamics",
        "metajax.envs.families.grid",
        "metajax.envs.families.halfcheetah",
        "metajax.envs.families.point",
        "metajax.envs.families.reacher",
        "metajax.envs.splits",
        "metajax.envs.families.swimmer",
        "metajax.envs.families.tabular",
        "metajax.envs.families.walker",
        "metajax.training.evaluation",
        "metajax.losses",
        "metajax.policies.mlp",
        "metajax.envs.rollouts",
        "metajax.rules",
    ],
    "beartype.beartype",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compile each program of this module once."""
    directory = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    former = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield directory
    for name, value in former.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def float64():
    """Everything in double precision, for modules that ask for it."""
    with jax.enable_x64(True):
        yield
