"""Comparisons with other libraries run when they are named (``make peers``), where these are installed."""

collect_ignore_glob = ["against_*.py"]
