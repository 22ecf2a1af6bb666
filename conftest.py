"""Examples in files that need a package which is not installed are left out."""

from importlib.util import find_spec

collect_ignore_glob = [f"randbp/kernels/*_{name}.py" for name in ("numba", "triton") if find_spec(name) is None]
