"""The problems to solve: DSRL's tasks by name, their simulators, and the scores of the paper (Eq. 26)."""
