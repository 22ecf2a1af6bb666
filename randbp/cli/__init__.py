"""The command ``randbp``: train, evaluate, sweep, report."""
