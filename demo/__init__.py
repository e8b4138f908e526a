"""The demonstration: real agent programs on the three services, as local processes."""
