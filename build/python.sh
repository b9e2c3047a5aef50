#!/bin/sh
# Print the path of a Python to create .venv with: sh build/python.sh [PYTHON]
#
# This is PYTHON if it is given; else python3 if its version fits, else an older version on the PATH,
# else one that uv fetches into .uv. Triton's Python backend (2.51) and NumPy 1.26 end at 3.12.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
needed="Python 3.10, 3.11 or 3.12 is needed"

fail() {
  echo "error: $1" >&2
  exit 1
}

# A command of that name may exist without working, such as a shim of pyenv.
fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

has_venv() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

without_venv="Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"

if [ -n "${1:-}" ]; then
  fits "$1" || fail "$needed, and PYTHON=$1 is none of them"
  has_venv "$1" || fail "$without_venv"
  echo "$1"
  exit
fi

missing=
for python in python3 python3.12 python3.11 python3.10; do
  if fits "$python"; then
    if has_venv "$python"; then
      echo "$python"
      exit
    fi
    missing=yes
  fi
done
[ -z "$missing" ] || fail "$without_venv"

for python in "$root"/.uv/python/*/bin/python3.12; do  # fetched by an earlier run
  if fits "$python"; then
    echo "$python"
    exit
  fi
done

# Keep everything in the project's folder, regardless of the user's own settings.
export UV_PYTHON_INSTALL_DIR="$root/.uv/python" UV_CACHE_DIR="$root/.uv/cache"
export UV_PYTHON_INSTALL_BIN=0 UV_PYTHON_PREFERENCE=only-managed
unset UV_PYTHON VIRTUAL_ENV CONDA_PREFIX
otherwise="$needed; install one, or name one with PYTHON=python3.11"
echo "$needed and not on the PATH: fetching CPython 3.12 (a build from GitHub) by uv (from PyPI) into .uv ..." >&2
mkdir -p "$root/.uv"
log="$root/.uv/log"
uv=$(command -v uv) || uv="$root/.uv/tools/bin/uv"
if [ ! -x "$uv" ]; then
  has_venv python3 || fail "$otherwise; uv cannot be fetched without python3's venv module either"
  { python3 -m venv --clear "$root/.uv/tools" &&
    timeout 600 "$root/.uv/tools/bin/python" -m pip install --disable-pip-version-check \
      --only-binary :all: --require-hashes --requirement "$root/build/uv-requirements.txt"; } >"$log" 2>&1 ||
    fail "uv could not be fetched (.uv/log says why); $otherwise"
fi
timeout 900 "$uv" python install --no-progress 3.12 >"$log" 2>&1 ||
  fail "CPython 3.12 could not be fetched (.uv/log says why); $otherwise"
python=$("$uv" python find --system 3.12 2>>"$log") && fits "$python" ||
  fail "the CPython 3.12 that was fetched does not run (.uv/log says why); $otherwise"
echo "$python"
