"""Section 3 and Appendix A in numbers: random tabular problems, Algorithm 3 under natural policy gradients, the bounds."""
