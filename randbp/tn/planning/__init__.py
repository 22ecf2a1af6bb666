"""Contraction plans: relations between legs, costs, the search for an order, the cache."""
