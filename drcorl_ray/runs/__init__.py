"""A run's directory: its files, its metrics logs, results.json, progress bars and Weights & Biases."""
