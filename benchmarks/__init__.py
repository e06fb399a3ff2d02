"""Measurements of the service, of its parts and of others like it."""

from clipchoir_steps.blas import use_fast_kernel

use_fast_kernel()  # here, since it comes before NumPy's import in any program of this package
