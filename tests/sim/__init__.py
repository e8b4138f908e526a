"""The simulation itself: a share of it, its determinism, and whether it finds what is broken."""
