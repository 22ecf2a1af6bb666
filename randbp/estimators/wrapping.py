"""Properties that an estimator around another one delegates to it."""

from .base import Estimator


class Wrapping:
    """Mixed in before :class:`Estimator` by classes with a field ``estimator``.

    Attributes:
        estimator: The one within.
    """

    estimator: Estimator

    @property
    def unbiased(self) -> bool:
        """Whether the wrapped estimator is unbiased."""
        return self.estimator.unbiased

    @property
    def fixed_size(self) -> bool:
        """Whether the sizes held by the wrapped estimator are fixed."""
        return self.estimator.fixed_size

    @property
    def draws_examples(self) -> bool:
        """Whether the wrapped estimator drops examples."""
        return self.estimator.draws_examples
