"""Examples in files that need a package which is not installed are left out."""

from importlib.util import find_spec

collect_ignore_glob = [f"randbp/kernels/*_{name}.py" for name in ("numba", "triton") if find_spec(name) is None]
if find_spec("triton") is None:
    collect_ignore_glob.append("tests/kernels/cubins.py")
