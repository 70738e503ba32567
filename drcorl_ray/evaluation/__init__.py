"""Trained policies judged: rollouts, scores, learning curves, DSRL's protocol, inference time, videos."""
