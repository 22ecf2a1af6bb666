"""Estimators as a YAML file or a command line gives them, nested ones included."""

from dataclasses import fields

import pytest
from jsonargparse import ArgumentParser

import randbp
from randbp import Estimator, NormSpatial, Rounding
from tests.catalogue import ESTIMATORS

SETTINGS = [
    *(case.make(0.5) for case in ESTIMATORS),
    *(NormSpatial(0.5, center=4, top=0.25), Rounding(4), Rounding(2, NormSpatial(0.5, center=4), block=64)),
]


@pytest.mark.parametrize("estimator", SETTINGS, ids=str)
def test_estimators_survive_a_configuration_file(estimator: Estimator) -> None:
    def plain(value: Estimator) -> dict:
        options = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        options = {k: plain(v) if isinstance(v, Estimator) else v for k, v in options.items()}
        return {"class_path": f"randbp.{type(value).__name__}", "init_args": options}

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--weight_vjp", type=Estimator)
    parsed = parser.parse_object({"weight_vjp": plain(estimator)})
    again = parser.parse_string(parser.dump(parsed))
    made = parser.instantiate_classes(again).weight_vjp
    assert made == estimator and type(made) is type(estimator)


def test_a_rounded_sample_from_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--weight_vjp", type=Estimator)
    sample = ["--weight_vjp.estimator=Spatial", "--weight_vjp.estimator.keep=0.25"]
    parsed = parser.parse_args(["--weight_vjp=Rounding", "--weight_vjp.bits=4", *sample])
    assert parser.instantiate_classes(parsed).weight_vjp == Rounding(4, randbp.Spatial(0.25))
