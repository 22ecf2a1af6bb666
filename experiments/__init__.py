"""Models, data, tasks and curves built on randbp: repository content, run from a checkout, never installed."""
