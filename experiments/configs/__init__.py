"""Recipes: each file is one experiment with its expected number, time and command."""
