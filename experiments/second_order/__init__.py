"""What second-order optimisers cost per step, and what their steps are worth: tables, a figure and a page.

``python -m experiments second-order``: (1) time and peak memory of a step over SGD's, on average with factors in every
tenth and inverses in every hundredth step, of SINGD, KFAC and EKFAC, and of SINGD with unfolded inputs where the
package ``singd`` is installed, beside published figures; (2) KFAC-reduce of ConvNeXt-Base's first layer beside
unfolding; (3) trainings of All-CNN-C on Fashion-MNIST with SGD, AdamW, Muon, SINGD, KFAC and EKFAC at four learning
rates each with two seeds, and at the best of these with five others.

All is written to ``runs/second_order``; what is written with the same options is not done again. The default, a quarter
of the channels for 150 steps of 128 images, takes an hour and a half on two cores.
"""

from .run_second_order import main

__all__ = ["main"]
