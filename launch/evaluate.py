"""Roll out policies on fresh episodes: a table of reward, cost and length. A run's directory stands for all its policies.

python launch/evaluate.py runs/RUN/policies/PointCircle-winner-0007.safetensors evaluation.episodes=50
python launch/evaluate.py runs/RUN evaluation.protocol=dsrl                              # 3 limits x 3 seeds x 20 episodes
python launch/evaluate.py runs/RUN evaluation.output=out evaluation.video=true           # out/evaluation.json, out/*.gif
"""

import sys

from drcorl_ray.cli import guarded, split_arguments


def work() -> None:
    from drcorl_ray.config_file import load_config
    from drcorl_ray.evaluation import evaluate_files  # after the command line is checked: simulators take time to import

    files, settings = split_arguments(sys.argv[1:])
    evaluate_files(files, load_config(settings))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
