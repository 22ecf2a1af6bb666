"""Tests with other libraries run when they are named (``make zoo``), where these are installed."""

collect_ignore_glob = ["*.py"]
