"""Roll out policies in their task's simulator: tables of reward, cost and length on fresh episodes. No Ray is started.

python launch/evaluate.py runs/RUN/policies/PointCircle-winner-0007.safetensors evaluation.episodes=50
python launch/evaluate.py runs/RUN …                            a run directory stands for all its policies
python launch/evaluate.py runs/* evaluation.protocol=dsrl       also the means of DSRL's 3 limits x 3 seeds x 20 episodes
python launch/evaluate.py runs/RUN evaluation.output=FOLDER     also FOLDER/evaluation.json, every episode in it
python launch/evaluate.py runs/RUN evaluation.output=FOLDER evaluation.video=true     also a GIF of an episode per policy
"""

import sys

from drcorl_ray.commands.cli import guarded, split_arguments


def work() -> None:
    from drcorl_ray.commands.evaluate import (
        evaluate_files,  # after the command line is checked: simulators take time to import
    )
    from drcorl_ray.config.loading import load_config

    policies, settings = split_arguments(sys.argv[1:])
    evaluate_files(policies, load_config(settings))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
