"""Ops for memories: a definition, an XLA form and Pallas kernels each. Needs nothing but JAX."""
