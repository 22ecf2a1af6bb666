"""Benchmarks, apart from the tests: times as ratios of interleaved medians within one run."""
