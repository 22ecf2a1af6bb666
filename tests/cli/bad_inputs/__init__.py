"""Inputs that cannot be used (or look as if), each with what is right: one table for each part of the public face."""
