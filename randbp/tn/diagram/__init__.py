"""Diagrams of tensor networks."""
