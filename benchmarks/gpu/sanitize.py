"""A short run of the kernels, with the checks of the tests::

PYTHONPATH=tests compute-sanitizer --tool memcheck python -m benchmarks.gpu.sanitize
"""

import kernel_checks
import numpy as np
from conv_checks import check_large_tiles, check_skips
from program_checks import CHOICES, mixed_choices, small_images, small_program

from dqt_core.backends import cupy_gpu

# Every array its own allocation: in a pool, what lies behind an array is memory that may be touched.
cupy_gpu.engine().xp.cuda.set_allocator(None)

for rounding in ("half_up", "floor"):
    program, images, picks = small_program(rounding), small_images(), mixed_choices()
    for widths in (np.array(CHOICES)[picks], "controller"):
        assert program.run(images, widths, "cupy").digest == program.run(images, widths, "numpy").digest
kernel_checks.check_planes_and_back(cupy_gpu.engine())
kernel_checks.check_gemv_of_every_batch(cupy_gpu.engine())
check_skips(cupy_gpu.engine())
check_large_tiles(cupy_gpu.engine())
print("sanitized run complete")
