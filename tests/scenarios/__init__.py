"""Golden scripts: what happens to the core and what it says to it, to be read by people."""
