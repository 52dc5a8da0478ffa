"""Scripts that use the library: train, evaluate, generate, and the recipes they run."""
