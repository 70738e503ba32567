"""Logged transitions: DSRL files read and validated (dsrl, download), the Parquet store, and what is known of a task's data."""
