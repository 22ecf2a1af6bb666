"""Access to PyTorch's internals, all in one place: hooks, modes and graph breaks."""
