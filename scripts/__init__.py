"""Developer tools: setting up, locking, linting. Run from the repository root."""
