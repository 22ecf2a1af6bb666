"""Module paths of the last release whose files are gone still give their public names, with a warning."""

import pickle
from importlib import import_module

import pytest

import randbp
from randbp._moved import GONE

PUBLIC = {
    "randbp.diagnostics.alive": "Allocation LiveStorages",
    "randbp.diagnostics.held": "HeldTensors held_for_backward",
    "randbp.diagnostics.memory": "PeakMemory",
    "randbp.diagnostics.peak": "StepPeak",
    "randbp.diagnostics.report": "MemoryComparison MemoryReport Row",
    "randbp.diagnostics.statistics": "Interval",
    "randbp.estimators.channels": "Channels",
    "randbp.estimators.draw": "Draw",
    "randbp.estimators.seeds": "manual_seed",
    "randbp.lean.install": "LeanHandle check_lean make_lean",
    "randbp.report.runs": "Run",
    "randbp.tn.layers": "ConvTransposeSpec LinearSpec linear_spec",
    "randbp.tn.operations.convolution": (
        "conv fold input_jvp input_vjp per_example_weight_vjp unfold unfolded_kernel weight_jvp weight_vjp"
    ),
    "randbp.tn.operations.positions": (
        "PositionClass constant_input_weight_vjp constant_output_grad_input_vjp input_vjp_of_positions "
        "position_classes weight_vjp_of_positions whole_class"
    ),
    "randbp.tn.operations.transposed": (
        "conv_transpose conv_transpose_input_jvp conv_transpose_input_vjp "
        "conv_transpose_per_example_weight_vjp conv_transpose_weight_jvp conv_transpose_weight_vjp "
        "unfold_transpose"
    ),
    "randbp.tn.pattern": "IndexPattern",
    "randbp.tn.plan": "Plan Step",
    "randbp.tn.plan_cache": "CacheInfo PlanCache cache",
    "randbp.tn.report": "PathReport",
    "randbp.tn.spec": "ConvSpec transposed_spec",
    "randbp.tune.assign": "UnreachableBudget assign",
}


@pytest.mark.parametrize(("path", "names"), PUBLIC.items(), ids=PUBLIC)
def test_public_names_are_found_where_they_were(path: str, names: str) -> None:
    home = import_module(next(home for home, gone in GONE.items() if path.removeprefix(f"{home}.") in gone.split()))
    for name in names.split():
        with pytest.warns(DeprecationWarning, match=f"{path} is gone: import {name} from {home.__name__}"):
            assert getattr(import_module(path), name) is getattr(home, name)


def test_every_module_that_is_gone_is_tried() -> None:
    assert PUBLIC.keys() == {f"{home}.{name}" for home, names in GONE.items() for name in names.split()}


def test_what_was_pickled_by_its_old_path_is_read() -> None:
    with pytest.warns(DeprecationWarning, match="randbp.tn.spec is gone"):
        found = pickle.loads(b"crandbp.tn.spec\nConvSpec\n.")
    assert found is randbp.tn.ConvSpec


def test_other_names_are_errors() -> None:
    for name in ("colour", "network"):  # the package has a module of the second name, which is not public
        with pytest.raises(AttributeError, match=rf"'randbp.tn.spec' is gone, and 'randbp.tn' has no '{name}'"):
            getattr(import_module("randbp.tn.spec"), name)
    with pytest.raises(ModuleNotFoundError):
        import_module("randbp.tn.colours")
