"""Random traffic against invariants and naive models."""
