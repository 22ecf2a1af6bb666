"""The library of operations around a convolution, each a few moves on the network of the convolution."""
