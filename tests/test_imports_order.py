"""No arrow points up: the parts of the package in the order in which they may import each other, from the ground."""

from tests.import_graph import circles, import_graph, imported_from_outside, shared_names, upward

FLOORS: list[tuple[str, ...]] = [
    ("text",),
    ("_torch", "_moved"),
    ("layers",),
    ("draws",),
    ("kernels",),
    ("codecs",),
    ("tn",),
    ("curvature",),
    ("estimators",),
    ("autograd", "functional"),
    ("lean",),
    ("randomize",),
    ("tune", "diagnostics"),
    ("callbacks", "integrations"),
    ("report", "cli"),
]

# What is left to mend. Entries may go, none may come.
SHARED_NAMES: set[str] = set()


def test_every_part_has_its_floor() -> None:
    parts = {name.split(".")[1] for name in import_graph() if "." in name}
    assert parts == {part for floor in FLOORS for part in floor}


def test_no_part_imports_one_above_it() -> None:
    assert list(upward(import_graph(), FLOORS)) == []


def test_lightning_and_its_company_stay_above_the_callbacks() -> None:
    below = {part for floor in FLOORS for part in floor} - {"callbacks", "report", "cli"}
    for name, packages in imported_from_outside().items():
        if name.count(".") and name.split(".")[1] in below:
            assert not packages & {"lightning", "torchmetrics", "wandb", "jsonargparse", "rich", "experiments"}, name


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(import_graph()) == []


def test_no_further_file_name_occurs_twice() -> None:
    found = shared_names(import_graph())
    assert found.keys() <= SHARED_NAMES, {name: found[name] for name in found.keys() - SHARED_NAMES}
    assert sum(map(len, found.values())) <= 2
