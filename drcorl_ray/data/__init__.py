"""The way of a transition: HDF5 (dsrl, download) → Parquet store (store) → Ray Data (stream) → device (replay)."""
