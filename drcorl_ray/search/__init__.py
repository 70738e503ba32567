"""Hyper-parameter search: Optuna suggests configurations, packs of members are trained, results are read back."""
