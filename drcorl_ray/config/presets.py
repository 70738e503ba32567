"""The presets: base settings by the name that `run.preset` gives. `paper` reproduces the published paper's settings."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "pretrain": {
            "noise_width": 256, "noise_expansion": 4, "noise_dropout": 0.1, "noise_weight_decay": 0.0,
            "critic_hidden": [256, 256], "critic_layer_norm": False, "learning_rate": 6e-4, "final_learning_rate": 1.0,
            "cost_discount": 0.99, "target_step": 0.005, "monte_carlo_steps": 0, "alpha": 0.2, "policy": "score",
            "condition_dropout": 1.0, "positive_cost": False,
        },
        "extract": {
            "steps": 2050, "critic_steps": 0, "target_step": 0.005, "clamp_cost_target": False, "terminal_cost": False,
            "normalize_action_gradients": False, "cost_step_reward_weight": 0.0, "final_learning_rate": 1.0,
            "policy_average": 0.0, "estimate_states": "all", "estimate_smoothing": 0.0, "update_diffusion": True,
        },
        "member": {
            "k": 2.0, "beta_0": 0.02, "alpha": 0.2, "actor_learning_rate": 6e-4, "policy_class": "gaussian_constant",
            "behaviour_reward_quantile": None, "slack_minus": 0.2, "slack_shrink": 1.0,
        },
    },
}  # fmt: skip
