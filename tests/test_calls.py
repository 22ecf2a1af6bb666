"""How many files a call travels through: figures that may only fall.

The aim for the default layer is 14 files, 50 functions and 60 changes of file.
"""

from bench.calls import of_contraction, of_layer


def test_the_way_of_a_default_convolution_gets_no_longer() -> None:
    forward, backward = of_layer()
    both = forward + backward
    assert both.functions and both.files <= 14
    assert len(both.functions) <= 46
    assert forward.changes + backward.changes <= 44


def test_a_warm_contraction_is_short() -> None:
    found = of_contraction()
    assert 0 < len(found.functions) <= 7 and found.files <= 6
