"""Input and output that knows nothing of learning: paths on disks and in object stores, atomic files, the terminal."""
