"""The command ``randbp``: train, evaluate, tune, sweep, report."""
