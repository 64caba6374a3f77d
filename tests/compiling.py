"""What tests ask of XLA: unoptimised code, which compiles several times faster than it would run."""

from importlib.metadata import version

# For `jax.jit(compiler_options=...)`; 13.4 -> 2.1 s for one SUAN gradient.
OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
# Newer jaxlib has no such flag, and an unknown one ends the process in parse_flags_from_env.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

# For the environment.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
