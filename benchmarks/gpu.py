"""Every benchmark that needs a GPU, in one command and under eight minutes; torch, numpy, pyarrow and safetensors are enough.

python -m benchmarks.gpu [FOLDER]

Writes FOLDER/learner.json and FOLDER/inference.json (FOLDER: $OUT, else gpu_results).
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
