"""Examples in files that need a package which is not installed are left out."""

from importlib.util import find_spec

NEEDED = {
    "numba": ["randbp/kernels/*_numba.py", "randbp/kernels/jit.py"],
    "triton": ["randbp/kernels/*_triton.py", "tests/kernels/cubins.py"],
    "transformers": ["randbp/integrations/huggingface.py"],
    "matplotlib": ["randbp/diagnostics/row_plots.py", "randbp/tn/diagram/drawing.py"],
}
"""Package: the files whose examples need it, though ``import randbp`` does not."""

collect_ignore_glob = [name for package, names in NEEDED.items() if find_spec(package) is None for name in names]
