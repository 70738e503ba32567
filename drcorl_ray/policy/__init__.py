"""Trained policies in numpy: they act, travel to rollout actors and are saved as one file. No torch, no Ray."""
