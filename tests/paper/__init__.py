"""One test a claim of the paper."""
