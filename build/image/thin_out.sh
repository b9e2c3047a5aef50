#!/bin/sh
# Take out of installed packages what a server on a CPU never reads: thin_out.sh SITE_PACKAGES
set -eu
cd "$1"

remove_all_but() { # FOLDER NAME ...: everything in the folder but these
  folder=$1
  shift
  for path in "$folder"/*; do
    case " $* " in *" ${path##*/} "*) ;; *) rm -rf "$path" ;; esac
  done
}

# The compiler of torch, and its tests but for what `import torch` reads.
rm -rf torch/_inductor
remove_all_but torch/testing/_internal __init__.py common_dtype.py logging_tensor.py

# Of torchvision, all that reads pictures; of CUDA, all but the two libraries that torch is linked to.
rm -rf torchvision/image*.so torchvision.libs
remove_all_but nvidia/cu13/lib libcudart.so.13 libcupti.so.13

# OpenVINO for other devices and other formats than ONNX and its own.
rm -rf openvino/include openvino/cmake openvino/tools openvino/libs/cache.json
rm -f openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so
find openvino/libs -name 'libopenvino_*_frontend.so*' ! -name '*_onnx_*' ! -name '*_ir_*' -delete

# Of Triton's wheel, its API for Python and its parts for other versions of Python.
remove_all_but pytriton __init__.py tritonserver
remove_all_but pytriton/tritonserver/python_backend_stubs \
  "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
rm -f nvidia_pytriton.libs/libpython3-*.so.*
# Triton would do it, if it might.
chmod 755 pytriton/tritonserver/python_backend_stubs/*/*

# Of AWS's services, all but S3 and signing in.
for folder in botocore/data/*/; do
  case $folder in */s3/ | */sso/ | */sso-oidc/ | */sts/) ;; *) rm -rf "$folder" ;; esac
done

rm -rf nvidia/*/include numpy/f2py numpy/distutils
rm -rf onnxruntime/transformers onnxruntime/quantization onnxruntime/tools
find . -type d -name tests -prune -exec rm -rf {} +
find . '(' -name '*.pyi' -o -name '*.pxd' -o -name '*.a' -o -name '*.h' ')' -delete
