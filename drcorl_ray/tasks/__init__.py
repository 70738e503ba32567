"""Tasks: the DSRL tasks by name, their simulators, and the paper's scores (Eq. 26)."""
