"""What an estimator around another one has from that."""

from .base import Estimator


class Wrapping:
    """Mixed in before :class:`Estimator` by those that have an ``estimator`` within.

    Attributes:
        estimator: The one within.
    """

    estimator: Estimator

    @property
    def unbiased(self) -> bool:
        """Whether the estimator within is."""
        return self.estimator.unbiased

    @property
    def fixed_size(self) -> bool:
        """Whether that of the estimator within is."""
        return self.estimator.fixed_size

    @property
    def draws_examples(self) -> bool:
        """Whether the estimator within does."""
        return self.estimator.draws_examples
