"""``randbp sweep`` and its files."""

from pathlib import Path

import yaml

from .rows import Command

FIT = "command: [randbp, fit, --config=good.yaml, '${args}']\n"
QUICK = "command: [sh, -c, 'exit 0']\n"
GRID = "method: grid\nparameters: {seed_everything: {value: 1}}\n"
RANDOM = "method: random\nrun_cap: 1\nparameters: "


def refused(id: str, content: str | bytes, *says: str, options: tuple[str, ...] = ()) -> Command:
    """A sweep file that cannot be used: one line with the file."""
    return Command(f"sweep {id}", ("sweep", "s.yaml", *options), says=("s.yaml", *says), files={"s.yaml": content})


def parameter(id: str, description: str, *says: str) -> Command:
    """A parameter of a random sweep that has no meaning: one line with file and key."""
    return refused(f"parameter {id}", f"{RANDOM}{{a: {description}}}\n", "parameters.a", *says)


def metric(id: str, content: str, *says: str) -> Command:
    """A metric or a rule for stopping that has no meaning."""
    return refused(id, f"{GRID}{content}\n", *says)


def _existing() -> None:
    Path("runs/s").mkdir(parents=True)


def _ran(*runs: str, status: str = "finished") -> None:
    for name in runs:
        assert yaml.safe_load(Path("runs/s", name, "summary.json").read_text())["status"] == status


TABLE = [
    refused("absname", f"name: /elsewhere\n{GRID}", "name='/elsewhere'", "expected the name of a folder"),
    refused("traversal", f"name: ../../evil\n{GRID}", "name='../../evil'", "expected the name of a folder"),
    refused("name with a line break", f'name: "a\\nb"\n{GRID}', "name='a\\nb'", "without control characters"),
    refused("name of 300 letters", f"name: {'a' * 300}\n{GRID}", "name='aaa", "300 bytes", "255 at most"),
    refused("listname", f"name: [a, b]\n{GRID}", "name=['a', 'b']: expected text"),
    refused(
        "number as name", f"name: 2024\n{GRID}", "name=2024: expected text that is not empty (write '2024' in quotes)"
    ),
    refused("empty name", f"name:\n{GRID}", "name=None: expected text"),
    refused("blank name", f"name: ''\n{GRID}", "name='': expected text that is not empty"),
    refused("badyaml", "name: [x", "not YAML"),
    refused("pyobj", "!!python/object/apply:os.system [touch evil]", "not YAML"),
    refused("binary", b"\xff\xfe\x00\x01", "not text"),
    refused("control character", b"name: \x01\n", "not YAML"),
    refused("bottomless", "[" * 3000, "not YAML"),
    refused("utf-16", GRID.encode("utf-16"), "not text"),
    refused("tab", "method: grid\n\tparameters: 1\n", "not YAML"),
    refused("two documents", f"{GRID}---\n{GRID}", "not YAML"),
    refused("date that is none", "name: 2024-13-41\n", "not YAML", "month"),
    refused("alias of itself", "method: grid\nparameters: &p {a: {parameters: *p}}\n", "parameters: an alias"),
    refused("empty", "", "expected a mapping with name, method, parameters"),
    refused("list", "[a, b]", "expected a mapping with name, method, parameters"),
    refused("text", "grid", "expected a mapping with name, method, parameters"),
    refused("noparams", "method: grid\n", "parameters: missing"),
    refused("emptyparams", "method: grid\nparameters: {}\n", "parameters={}: expected at least 1 item"),
    refused("nullparams", "method: grid\nparameters:\n", "parameters=None: expected a valid dictionary"),
    refused("paramlist", "method: grid\nparameters: [a, b]\n", "parameters=['a', 'b']: expected"),
    refused("no method", "parameters: {a: {value: 1}}\n", "method: missing, expected one of grid, random, bayes"),
    refused("typo_metohd", GRID.replace("method", "metohd"), "metohd: no such key (did you mean method?)"),
    refused("unknown key", f"{GRID}colour: red\n", "colour: no such key, expected one of name, "),
    refused("method grdi", GRID.replace("grid", "grdi"), "method='grdi'", "did you mean grid?"),
    refused("method custom", GRID.replace("grid", "custom"), "method='custom': expected 'grid', 'random' or 'bayes'"),
    refused("method of numbers", GRID.replace("grid", "[1]"), "method=[1]: expected 'grid'"),
    refused("job of W&B's servers", f"{GRID}job: x\n", "job: W&B's servers are needed"),
    refused("bayes without metric", RANDOM.replace("random", "bayes") + "{a: {value: 1}}\n", "metric: missing"),
    refused("key on", f"{RANDOM}{{on: {{value: 1}}}}\n", "key on", "line 3", "is read as bool"),
    refused("key 1", f"{RANDOM}{{1: {{value: 1}}}}\n", "key 1", "line 3", "is read as int"),
    refused("key null", f"{GRID}null: 3\n", "key null", "line 3", "is read as null"),
    refused(
        "key twice", f"{RANDOM}{{a: {{value: 1}}, a: {{value: 2}}}}\n", "key a", "line 3", "expected each key once"
    ),
    refused("key of a list", f"{GRID}? [a]\n: 1\n", "line 3", "the key is a seq, expected text"),
    refused("key with a space", f"{RANDOM}{{a b: {{value: 1}}}}\n", "parameters.a b='a b': expected letters"),
    refused(
        "nested and dotted",
        f"{RANDOM}{{a.b: {{value: 1}}, a: {{parameters: {{b: {{value: 1}}}}}}}}\n",
        "a.b is there twice",
    ),
    refused(
        "nested wrong",
        f"{RANDOM}{{a: {{parameters: {{b: {{min: x, max: 1}}}}}}}}\n",
        "parameters.a.parameters.b.min='x'",
    ),
    parameter("without a description", "", "=None: expected value, values, min and max"),
    parameter("as a number", "3", "=3: expected value, values, min and max"),
    parameter("of nothing", "{}", "={}: expected value, values, min and max"),
    parameter("of nothing nested", "{parameters: {}}", ".parameters={}: expected at least 1 item"),
    parameter("valuesempty", "{values: []}", ".values=[]: expected at least 1 item"),
    parameter("values without value", "{values: }", ".values=None: expected a valid list"),
    parameter("values as text", "{values: 1 2 3}", ".values='1 2 3': expected a valid list"),
    parameter("value as date", "{values: [2024-01-01]}", ".values[0]=", "write '2024-01-01' in quotes"),
    parameter("unknown key", "{value: 1, weight: 2}", ".weight: no such key"),
    parameter("unknown distribution", "{distribution: nomral}", ".distribution='nomral'", "did you mean normal?"),
    parameter("minstr", "{min: 1e-4, max: 1}", ".min='1e-4': expected a number (write 1.0e-4)"),
    parameter("min 1e4", "{min: 1e4, max: 2.0e+4}", ".min='1e4': expected a number (write 1.0e+4)"),
    parameter("min in quotes", "{min: '3', max: 4}", ".min='3': expected a number (write 3, without quotes)"),
    parameter("min as text", "{min: low, max: 4}", ".min='low': expected a number"),
    parameter("min true", "{min: true, max: 4}", ".min=True: expected an integer"),
    parameter("min nan", "{min: .nan, max: 4}", ".min=nan: expected a number"),
    parameter("max infinite", "{min: 0, max: .inf}", ".max=inf: expected a number"),
    parameter("max missing", "{min: 0}", ".max: missing"),
    parameter("minmaxswapped", "{min: 5, max: 2}", ".min=5: expected at most max=2"),
    parameter("logzero", "{min: 0, max: 1, distribution: log_uniform_values}", ".min=0: expected a number above 0"),
    parameter(
        "log below zero", "{min: -1, max: 1, distribution: q_log_uniform_values}", ".min=-1: expected a number above 0"
    ),
    parameter("exponents", "{min: 0, max: 1000, distribution: log_uniform}", "log_uniform_values takes the values"),
    parameter(
        "log_normal too wide",
        "{distribution: log_normal, sigma: 500}",
        "expected log_normal with draws that a float can",
    ),
    parameter(
        "int_uniform of halves", "{min: 0.5, max: 2, distribution: int_uniform}", ".min=0.5: expected an integer"
    ),
    parameter(
        "too large an integer", "{min: 0, max: 100000000000000000000}", ".max=1000", "expected an integer from -9007"
    ),
    parameter("sigma < 0", "{distribution: normal, sigma: -1}", ".sigma=-1: expected a number >= 0"),
    parameter("q 0", "{distribution: q_uniform, min: 0, max: 1, q: 0}", ".q=0: expected a number above 0"),
    parameter("beta a 0", "{distribution: beta, a: 0}", ".a=0: expected a number above 0"),
    parameter("probs", "{values: [1, 2], probabilities: [1.0]}", ".probabilities=[1.0]: expected 2 numbers"),
    parameter("probs sum", "{values: [1, 2], probabilities: [0.5, 0.6]}", "expected numbers whose sum is 1, not 1.1"),
    parameter(
        "probs text", "{values: [1, 2], probabilities: ['0.5', 0.5]}", ".probabilities[0]='0.5': expected a number >= 0"
    ),
    parameter("probs below zero", "{values: [1, 2], probabilities: [1.5, -0.5]}", ".probabilities[1]=-0.5"),
    parameter("probs alone", "{probabilities: [1.0]}", ".values: missing"),
    refused("rangegrid", "method: grid\nparameters: {a: {min: 0.0, max: 1}}\n", "uniform does not go with method=grid"),
    refused("huge grid", "method: grid\nparameters: {a: {min: 0, max: 1000000000}}\n", "a grid of 1000000001 runs"),
    refused("randomnocount", RANDOM.replace("run_cap: 1\n", "") + "{a: {value: 1}}\n", "run_cap: missing", "--count"),
    refused("cap of too many", f"{RANDOM.replace('1', '1000000000')}{{a: {{value: 1}}}}\n", "at most 100000 runs"),
    refused("capstr", f"{GRID}run_cap: '3'\n", "run_cap='3': expected an integer >= 1 (write 3, without quotes)"),
    refused("capneg", f"{GRID}run_cap: -2\n", "run_cap=-2: expected an integer >= 1"),
    refused("cap 0", f"{GRID}run_cap: 0\n", "run_cap=0: expected an integer >= 1"),
    refused("cap 1.5", f"{GRID}run_cap: 1.5\n", "run_cap=1.5: expected an integer >= 1"),
    refused("cap true", f"{GRID}run_cap: true\n", "run_cap=True: expected an integer >= 1"),
    refused("cmdstr", f"{GRID}command: randbp fit\n", "command='randbp fit': expected a valid list"),
    refused("cmd in cmd", f"{GRID}command: [randbp, [fit]]\n", "command[1]=['fit']: expected a word"),
    refused("cmd null", f"{GRID}command: [randbp, null]\n", "command[1]=None: expected a word"),
    refused("cmdmissing", f"{GRID}command: [nosuchprogram]\n", "command: no program 'nosuchprogram'"),
    refused("cmd of nothing", f"{GRID}command: ['${{env}}']\n", "command: empty, expected a program"),
    refused(
        "macro", f"{GRID}command: [randbp, fit, '${{nosuch}}']\n", "command[2]='${nosuch}': expected one of ${args}, "
    ),
    refused("args_dict", f"{GRID}command: [randbp, '${{args_dict}}']\n", "command[1]='${args_dict}': expected one of"),
    refused("program missing", f"{GRID}program: nosuch.py\n", "program='nosuch.py': no such file"),
    refused("module missing", f"{GRID}command: ['${{interpreter}}', -m, nosuch.it]\n", "'nosuch.it': no such module"),
    refused("program not given", f"{GRID}command: ['${{program}}']\n", "program: missing", "${program} in command[0]"),
    refused("program list", f"{GRID}program: [a]\n", "program=['a']: expected text"),
    metric("metric as text", "metric: loss", "metric='loss': expected a mapping with name, goal"),
    metric("metric without name", "metric: {goal: minimize}", "metric.name: missing"),
    metric("metric goal", "metric: {name: a, goal: minimise}", "metric.goal='minimise'", "did you mean minimize?"),
    metric("metric typo", "metric: {name: a, gaol: minimize}", "metric.gaol: no such key (did you mean goal?)"),
    metric("metric target", "metric: {name: a, target: 1e-3}", "metric.target='1e-3'", "write 1.0e-3"),
    metric("metric impute", "metric: {name: a, impute: mean}", "metric.impute='mean': expected 'latest'"),
    metric("stopping without metric", "early_terminate: {type: hyperband, min_iter: 1}", "metric: missing"),
    *(
        metric(f"stopping {id}", f"metric: {{name: a}}\nearly_terminate: {content}", "early_terminate", *says)
        for id, content, *says in (
            ("as text", "hyperband", "='hyperband': expected a mapping with type, min_iter"),
            ("without type", "{min_iter: 1}", ".type: missing, expected hyperband"),
            ("of another type", "{type: median}", ".type='median': expected 'hyperband'"),
            ("without bands", "{type: hyperband}", "expected min_iter, or max_iter and s"),
            ("with half of the bands", "{type: hyperband, max_iter: 27}", "expected min_iter, or max_iter and s"),
            ("from 0", "{type: hyperband, min_iter: 0}", ".min_iter=0: expected an integer >= 1"),
            ("with eta 1", "{type: hyperband, min_iter: 1, eta: 1}", ".eta=1: expected a number above 1"),
            ("with too few steps", "{type: hyperband, max_iter: 2, s: 2, eta: 3}", "a max_iter of at least eta=3"),
            ("strict 1", "{type: hyperband, min_iter: 1, strict: 1}", ".strict=1: expected true or false"),
            ("typo", "{type: hyperband, min_itr: 1}", ".min_itr: no such key (did you mean min_iter?)"),
        )
    ),
]
FILE = {"s.yaml": QUICK + GRID}
OPTIONS = [
    Command("sweep missing", ("sweep", "none.yaml"), says=("none.yaml: No such file",)),
    Command("sweep dir", ("sweep", "."), says=(".: Is a directory",)),
    Command("sweep no args", ("sweep",), says=("required: file",)),
    *(
        Command(f"sweep {option}", ("sweep", "s.yaml", option), says=says, files=FILE)
        for option, *says in (
            ("--jobs=0", "--jobs=0: expected an integer >= 1"),
            ("--jobs=x", "--jobs", "'x'"),
            ("--jobs=1.5", "--jobs", "'1.5'"),
            ("--count=0", "--count=0: expected an integer >= 1"),
            ("--count=-1", "--count=-1: expected an integer >= 1"),
            ("--seed=-1", "--seed=-1: expected an integer >= 0"),
            ("--name=../evil3", "--name='../evil3', expected the name of a folder"),
            ("--name=/elsewhere", "--name='/elsewhere', expected the name of a folder"),
            ("--name=", "--name='', expected the name of a folder"),
            ("--root=good.yaml", "good.yaml/s", "Not a directory"),
            ("--root=/proc/x", "/proc/x/s", "No such file or directory"),
            ("--reusme", "no option --reusme (did you mean --resume?)"),
            ("--cuont=3", "no option --cuont (did you mean --count?)"),
        )
    ),
    Command("sweep existing", ("sweep", "s.yaml"), says=("runs/s exists", "--resume"), files=FILE, prepare=_existing),
]
ACCEPTED = [
    Command(
        "sweep dup",
        ("sweep", "s.yaml"),
        code=0,
        says=("[1/2] a=1  finished", "[2/2] a=2  finished"),
        files={"s.yaml": QUICK + "method: grid\nparameters: {a: {values: [1, 1, 2]}}\n"},
        leaves=("runs/s",),
        check=lambda _: _ran("a=1", "a=2"),
    ),
    Command(
        "sweep value with slashes, and one of many letters",
        ("sweep", "s.yaml"),
        code=0,
        says=("[1/2] a=.._.._x-", "finished"),
        files={"s.yaml": QUICK + f"method: grid\nparameters: {{a: {{values: [../../x, {'数' * 300}]}}}}\n"},
        leaves=("runs/s",),
    ),
]
FAILED = [
    Command(
        "sweep badvalue",
        ("sweep", "s.yaml"),
        code=1,
        says=("run: randbp fit: model.lr", "abc", "(log: runs/s/logs/run.log)", "1 of 1 runs did not finish"),
        files={"s.yaml": FIT + "method: grid\nparameters: {model.lr: {value: abc}}\n"},
        leaves=("runs/s",),
        lines=None,
        check=lambda _: _ran("run", status="failed"),
    ),
    Command(
        "sweep nullvalue",
        ("sweep", "s.yaml"),
        code=1,
        says=("run: ", "layers='None'", "1 of 1 runs did not finish"),
        files={"s.yaml": FIT + "method: grid\nparameters: {tensor_dropout.layers: {value: null}}\n"},
        leaves=("runs/s",),
        lines=None,
    ),
]
ROWS = [*TABLE, *OPTIONS, *ACCEPTED, *FAILED]
