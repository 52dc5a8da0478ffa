"""Memory layers for JAX: one contract, published architectures, plain functions."""
