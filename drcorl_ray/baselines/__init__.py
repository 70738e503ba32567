"""Algorithms to compare with, as populations on the same networks."""
