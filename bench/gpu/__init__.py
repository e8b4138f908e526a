"""Checks that need a GPU: see README.md here. Nothing else in the project depends on them."""
