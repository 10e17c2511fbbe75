"""The presets: each is one visible table of what is not the same in all of them.

A saved run holds the resolved values, so that a later change of a preset cannot change what an old run meant.
"""

from typing import Any

ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
"""What goes with AdamW, in every preset."""

PRESETS: dict[str, dict[str, Any]] = {
    # Kim & Lee 2020 to the letter where the paper speaks, and DARTS's habits where it is silent.
    "paper": {
        "space": "dnat",
        "epochs": 600,
        "lr": 0.025,
        "warm_up": 0.0,
        "weight_decay": 3e-4,
        "cutout": "searched",  # 16 pixels, for DARTS and ProxylessNAS alone
        "judge": "theta",
        "distillation": 0.0,
        "feature_distillation": 0.0,
        "settle": 0.0,
        "gate": "raw",  # o(x) = theta_same * op(x) + theta_identity * x; no normalization
        "skips": True,  # the hand-made networks carry the null edges of NAT's genotypes
        "skip_threshold": 1.0,  # literal argmax of (0, theta_identity, 1) on a null edge
        "lr_theta": 3e-4,  # Adam's step, as in DARTS
        "theta_betas": (0.5, 0.999),
        "zero_one_weight": 0.0,
        "cost_weight": 0.0,
        "cost_target": 0.0,
    },
    # What we found to work better; docs/log.md has the figures behind each value.
    "improved": {
        "space": "dnat",
        "epochs": 200,
        "lr": 0.025,
        "warm_up": 0.0,
        "weight_decay": 3e-4,
        "cutout": 0,
        "judge": "theta",
        "distillation": 0.0,
        "feature_distillation": 0.0,
        "settle": 0.5,  # choices are made half way through the stage and come into force step by step
        "gate": "sigmoid",  # bounded gates that prefer to be 0 or 1, so that committing changes little
        "skips": False,
        "skip_threshold": 0.5,
        "lr_theta": "auto",  # from theta_reach: a short stage can change choices as a long one can
        "theta_betas": (0.9, 0.999),
        "zero_one_weight": 0.01,
        "cost_weight": 0.2,
        "cost_target": 0.5,  # below this share nothing is charged: pressure alone must not ruin a network
    },
}

PRESETS["fine-tune"] = PRESETS["improved"] | {
    "space": "dnat,width",
    # For a network that is trained already. Within a budget its answers decide before anything is trained, and all
    # epochs are for recovery; docs/log.md has the tables from which the rate and the weights follow.
    "epochs": 60,
    "lr": 0.03,
    "judge": "answers",
    "distillation": 0.5,
    "feature_distillation": 48.0,
}
