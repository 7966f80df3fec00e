#!/bin/sh
# Builds the extension once with address and undefined-behaviour sanitisers and runs the kernel tests under
# them. PYTHON names an interpreter whose site-packages hold the test requirements.
set -eu
PYTHON=${PYTHON:-python3}
overlay=build/sanitize/site
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$overlay" \
  -C build-dir=build/sanitize/cmake -C cmake.build-type=None -C cmake.define.XENT_SANITIZE=ON .
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# -S: without the hooks of an editable install, which would bring back the other build.
PYTHONPATH="$overlay:$packages" OMP_NUM_THREADS=2 \
  LD_PRELOAD="$(${CC:-gcc} -print-file-name=libasan.so) $(${CC:-gcc} -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "$PYTHON" -S -m pytest -p no:cacheprovider -q tests/api/test_arrays.py tests/kernels/test_conformance.py \
  tests/kernels/test_evaluate.py tests/kernels/test_sparse.py tests/kernels/test_binary.py tests/kernels/test_native.py \
  tests/jax/test_ffi.py \
  -k "native or test_ffi.py or test_evaluate.py or sparse or test_binary.py or arrays or layouts or in_place or row_counts or class_counts or without_leading" "$@"
