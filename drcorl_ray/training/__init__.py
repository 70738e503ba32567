"""The two stages of a run without Ray: build them, run them, save and resume them, evaluate them online."""
