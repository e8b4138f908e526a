"""The columns of steady rows."""
