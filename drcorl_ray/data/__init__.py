"""Logged transitions: DSRL files read and validated, the Parquet store, and what is known of a task's data."""
