"""DRCORL in plain torch: no Ray, no simulator, no files."""
