"""Networks of other libraries: ``make zoo`` runs the tests, ``python -m tests.zoo`` writes docs/zoo.md."""
