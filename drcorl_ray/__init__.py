"""drcorl_ray: diffusion-regularised constrained offline reinforcement learning, population-batched, on Ray."""

from drcorl_ray.errors import UserError
from drcorl_ray.policy.loading import Policy, load_policy
from drcorl_ray.tasks.registry import register_task

__all__ = ["Policy", "UserError", "load_policy", "register_task"]
