"""A numerical check of section 3 and Appendix A: random tabular CMDPs, Algorithm 3 with natural gradients, the bounds."""
