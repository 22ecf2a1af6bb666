"""The findings of a comparison of methods, in words derived from its numbers."""

from collections.abc import Sequence

from randbp.text.units import PERCENT, quantity, ratio

from .standing import SAME_BYTES, SAME_TIME, Standing

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SLOWER = 1.1
"""Above this ratio of times, a method that saves memory is said to cost time."""


def finding(standings: Sequence[Standing]) -> str:
    """The first sentence: gains and costs of the preset that holds the least."""
    return _sentence(headline(standings), of_what=True)


def other_findings(standings: Sequence[Standing]) -> list[str]:
    """A sentence for each other preset and for each rival."""
    first = headline(standings)
    others = [s for s in standings if s.method.role != "exact" and s is not first]
    return [_sentence(s, of_what=False) for s in others]


def headline(standings: Sequence[Standing]) -> Standing:
    """The preset that holds the least, of those that were trained to the end."""
    return min((s for s in standings if s.method.role == "preset" and s.trained), key=lambda s: s.held)


def _sentence(standing: Standing, of_what: bool) -> str:
    training = f"With {standing.method.name} training {_bytes(standing, of_what)}"
    return f"{training}, {_time(standing)}, {_accuracy(standing)}."


def _bytes(standing: Standing, of_what: bool) -> str:
    if standing.bytes_verdict == "same":
        return f"holds as much as {'exact backpropagation' if of_what else 'exact'}"
    peak = f"{share(standing.peak)} {'its' if of_what else 'the'} peak"
    if not of_what:
        return f"holds {share(standing.held)} the memory ({peak})"
    return f"holds {share(standing.held)} the memory that exact backpropagation holds for its backward pass ({peak})"


def _time(standing: Standing) -> str:
    if standing.time_verdict == "same":
        return "takes the same time"
    costs = standing.time.estimate > SLOWER or (standing.time_verdict == "worse" and standing.bytes_verdict != "better")
    return f"{'but ' if costs else ''}takes {ratio(standing.time.estimate)} the time"


def _accuracy(standing: Standing) -> str:
    """The outcome, with both accuracies unless all are equal; the gradient of what was only timed."""
    if not standing.trained:
        if not standing.gradient_error:
            return "and its gradients are the same, bit for bit"
        return f"and its gradient strays by {standing.gradient_error:.2g} of the exact one's norm"
    if not any(standing.differences):
        same_bits = not standing.gradient_error
        return "and reaches the same accuracy" + (", for its gradients are the same, bit for bit" if same_bits else "")
    ours, theirs = (quantity(value, None, PERCENT) for value in (standing.accuracy.mean, _exact_mean(standing)))
    both = f"({ours} against {theirs})"
    points = f"{abs(standing.difference.estimate) * 100:.1f} points"
    seeds = len(standing.differences)
    match standing.accuracy_verdict:
        case "same":
            return f"and reaches the same accuracy within the seeds' spread {both}"
        case "open":
            direction = "more" if standing.difference.estimate > 0 else "less"
            number = COUNTS[seeds] if seeds < len(COUNTS) else str(seeds)
            seed = "seed" if seeds == 1 else "seeds"
            return f"and reaches {points} {direction} accuracy, which {number} {seed} cannot tell from chance {both}"
        case "better":
            return f"and reaches {points} more accuracy, further than seeds differ {both}"
        case _:
            if not standing.difference.estimate < 0:
                return f"but the training did not come to a finite result {both}"
            return f"but loses {points} of accuracy, further than seeds differ {both}"


def _exact_mean(standing: Standing) -> float:
    return standing.accuracy.mean - standing.difference.estimate


def share(part: float) -> str:
    """A share in words, to be followed by "the memory": a unit fraction if one is within a twelfth of it.

    Example:
        >>> share(0.128), share(0.5), share(0.43), share(0.72), share(1.3)
        ('1/8 of', 'half of', '43 % of', '72 % of', '1.3 times')
    """
    if part > 1:
        return f"{part:.2g} times"
    if 0 < part < 0.55:
        inverse = round(1 / part)
        if abs(1 / inverse / part - 1) < 1 / 12:
            return "half of" if inverse == 2 else f"1/{inverse} of"
    return f"{part:.0%} of".replace("%", " %")


def advice(standings: Sequence[Standing], minibatch_noise: float) -> list[str]:
    """Advice on what to change where something does not pay; empty if everything does."""
    found = []
    for standing in standings:
        if standing.method.role == "preset":
            found += _advice(standing, minibatch_noise)
    found += _better_rivals(standings)
    return found


def _advice(standing: Standing, minibatch_noise: float) -> list[str]:
    name, time, found = standing.method.name, ratio(standing.time.estimate), []
    saves = standing.bytes_verdict == "better"
    if standing.time_verdict == "worse" and (not saves or standing.time.estimate > SLOWER):
        if standing.method.reference_kernels:
            found.append(
                f"{name} takes {time} the time because fused kernels are missing: pip install 'randbp[cpu]' (numba) on "
                "a processor; on a GPU, Triton comes with PyTorch."
            )
        elif saves:
            found.append(
                f"{name} takes {time} the time: holding less costs a pass over each tensor and some microseconds of "
                "Python for each operation. Wider layers and larger batches pay that back; where time matters more "
                "than memory, leave narrow layers exact with layers=… or lean={…}."
            )
        else:
            found.append(
                f"{name} takes {time} the time and saves no memory here: leave it off, or name the layers that gain "
                "with layers=… (randbp.autotune finds them)."
            )
    elif not saves and standing.time_verdict == "same":
        found.append(
            f"{name} saves neither time nor memory here: on this machine no layer is large enough for anything to be "
            "faster than PyTorch's own kernels by a twentieth. It gains in wider layers; for memory there is "
            'preset="memory".'
        )
    if not standing.trained:
        return found
    lost = -100 * standing.difference.estimate
    if standing.accuracy_verdict == "open" and lost > 0:
        found.append(f"{name} has {lost:.1f} points less accuracy, which may be chance: train more seeds to be sure.")
    if standing.accuracy_verdict == "worse":
        found.append(
            f"{name} loses accuracy: its gradient error is {standing.gradient_error:.2g}, the minibatch's own noise "
            f"{minibatch_noise:.2g}. Give it more bits=…, or a budget for each layer by randbp.autotune."
        )
    return found


def _better_rivals(standings: Sequence[Standing]) -> list[str]:
    """Rivals whose peak is no higher, and which take no longer, than the preset that holds the least."""
    first = headline(standings)
    return [
        f"With {s.method.name} training peaks no higher than with {first.method.name} and takes no longer: prefer "
        "that, unless one example does not fit, batch normalisation or the loss needs the whole batch, or small "
        "batches starve the device."
        for s in standings
        if s.method.role == "rival"
        and s.peak <= first.peak * (1 + SAME_BYTES)
        and s.time.estimate <= first.time.estimate * (1 + SAME_TIME)
    ]
