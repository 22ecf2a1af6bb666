"""The operator database runs in a process of its own: importing it freezes PyTorch's global flags."""

collect_ignore = ["operators"]
