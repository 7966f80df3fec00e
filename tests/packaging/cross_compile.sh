#!/bin/sh
# Compiles every source for systems that these tests do not reach: macOS on ARM, Windows, and musl on both processors.
# PYTHON names an interpreter that has nanobind and ziglang. WINDOWS names a folder with the headers of Python, its
# PC/pyconfig.h among them; without it the files that include them are left out for Windows.
set -eu
PYTHON=${PYTHON:-python3}
# Clang warns of loops that it does not vectorise, and of a capture that some instances do not use.
warnings="-Wall -Wextra -Werror -Wno-pass-failed -Wno-unused-lambda-capture"
options="-std=c++17 -O1 -fno-math-errno -fno-trapping-math -fopenmp-simd"
nanobind=$("$PYTHON" -m nanobind --include_dir)
unix=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
build=$(mktemp -d)
trap 'rm -r "$build"' EXIT
echo "BUILT(baseline)" >"$build/isas.inc"

compile() { # the target of zig, the folder of Python's headers, options of the kernels
  target=$1 python=$2
  shift 2
  count=0
  for source in $(find native -name '*.cpp' ! -path 'native/bind/*') ${python:+native/bind/*module.cpp}; do
    case $source in
    native/bind/*) set -- -DNDEBUG -isystem native/third_party -isystem "$nanobind" \
      -isystem "$nanobind/../ext/robin_map/include" -isystem "$python" -I "$build" ;;
    esac
    "$PYTHON" -m ziglang c++ -target "$target" $options $warnings -DXENT_ISA=baseline "$@" -c "$source" -o "$build/object"
    count=$((count + 1))
  done
  echo "$target: $count files compiled"
}

compile aarch64-macos "$unix"
compile aarch64-linux-musl "$unix"
compile x86_64-linux-musl "$unix" -march=x86_64_v4
compile x86_64-windows-gnu "${WINDOWS:-}" -march=x86_64_v4
