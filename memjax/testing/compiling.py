"""Compiling fast: it is what the laws cost."""

import functools

import jax


@functools.cache
def _options() -> dict:
  """Options that make compiling for a CPU five times cheaper; running costs the laws nothing."""
  if jax.default_backend() != "cpu":
    return {}
  wanted = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
  }

  def known(option):  # names come and go with XLA's versions
    try:
      jax.jit(lambda a: a, compiler_options=dict([option])).lower(0.0).compile()
    except Exception:  # whatever it raises, the option is left out
      return False
    return True

  return dict(filter(known, wanted.items()))


def jit(fn, **options):
  """`jax.jit`, compiled as fast as the compiler can."""
  return jax.jit(fn, compiler_options=_options(), **options)
