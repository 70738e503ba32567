from drcorl_ray.commands.cli import main

raise SystemExit(main("train"))
