"""Run every GPU benchmark in less than eight minutes; needs only torch, numpy, pyarrow and safetensors.

python -m benchmarks.gpu [FOLDER]

Writes FOLDER/learner.json and FOLDER/inference.json (default FOLDER: $OUT, or gpu_results).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("inference", "learner")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OUT", "gpu_results"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", "cuda", "--output", str(folder / f"{name}.json")]
        failed |= subprocess.run(command, check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
