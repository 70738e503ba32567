"""Hyper-parameter search: Optuna suggests configurations, which are trained in packs of members."""
