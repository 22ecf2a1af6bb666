"""Comparisons of methods as the demo writes them, without the trainings."""

from typing import Any

from experiments.demo.methods import Methods
from experiments.demo.standing import Standing, standings

EXACT = {"accuracy": (0.970, 0.972, 0.974), "held": 1.0, "peak": 1.0, "time": 1.0, "error": 0.0}
ROUNDS = 40
MIB = 2**20


def method(name: str, role: str, **changes: Any) -> dict[str, Any]:
    """A method's entry: what it needs and reaches, over the exact one's; steps vary by a tenth, the same in all.

    With accuracies that are ``None`` it was only timed, in so many ``rounds``.
    """
    told = EXACT | changes
    trainings = []
    for seed, accuracy in enumerate(told["accuracy"]):
        count = told.get("rounds", ROUNDS)
        rounds = [0.1 * (1 + 0.1 * ((7 * round_ + seed) % 10) / 10) for round_ in range(count)]
        noise = [1 + told.get("noise", 0.0) * (-1) ** round_ for round_ in range(count)]
        trainings.append(
            {
                "seed": seed,
                "accuracy": accuracy,
                "held_bytes": 48 * MIB * told["held"],
                "peak_bytes": 56 * MIB * told["peak"],
                "gradient_error": told["error"],
                "seconds": [told["time"] * one * factor for one, factor in zip(rounds, noise, strict=True)],
            }
        )
    reference = told.get("reference", False)
    return {"name": name, "role": role, "what": "It.", "trainings": trainings, "reference_kernels": reference}


def content(*methods: dict[str, Any]) -> dict[str, Any]:
    """All that the file has, the exact method before the given ones."""
    return {
        "methods": [method("exact", "exact"), *methods],
        "model": "Net",
        "data": "Images",
        "about": ["Chosen for a test."],
        "parameters": 1234,
        "batch_size": 64,
        "steps": 60,
        "minibatch_noise": 0.94,
        "waiting_threads": 0.01,
    }


def memory(**changes: Any) -> dict[str, Any]:
    """A preset that wins, but for what is changed."""
    wins = {"held": 0.125, "peak": 0.3, "time": 1.05, "error": 0.08, "accuracy": (0.971, 0.972, 0.972)}
    return method('preset="memory"', "preset", **(wins | changes))


def standings_of(*methods: dict[str, Any]) -> list[Standing]:
    return standings(Methods.model_validate(content(*methods)))
