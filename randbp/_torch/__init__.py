"""What the library asks of PyTorch itself: its internals about hooks and modes in one place, and breaks of graphs."""
