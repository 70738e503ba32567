"""Logged transitions: reading and validating DSRL files, the Parquet store, and a task's dataset statistics."""
