"""`python -m drcorl_ray COMMAND …` is the same as `drcorl COMMAND …`."""

from drcorl_ray.commands.cli import main

raise SystemExit(main())
