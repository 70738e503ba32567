"""Evaluation of trained policies: rollouts, scores, learning curves, DSRL's protocol, inference time, videos."""
