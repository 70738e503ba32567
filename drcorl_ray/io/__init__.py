"""Bytes without meaning: paths on disks and in object stores, atomic files, the terminal."""
