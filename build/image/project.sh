#!/bin/sh
# Finish this project's part of an image: project.sh FOLDER. The folder holds opt/server, opt/client and
# models, and is copied over the image's root.
set -eu
root=$1
python=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')

# Modules of the backends are links to those of the steps in model_repository.
ln -s /models "$root/opt/model_repository"

# Both packages can be imported, and the client's command is on the PATH.
packages=$root/opt/venv/lib/$python/site-packages
mkdir -p "$root/opt/venv/bin" "$packages"
printf '/opt/server\n/opt/client\n' > "$packages/yolov5.pth"
cat > "$root/opt/venv/bin/yolov5-client" <<'END'
#!/opt/venv/bin/python3
import sys
from yolov5_client._cli import main
sys.exit(main())
END
chmod 755 "$root/opt/venv/bin/yolov5-client"

# Bytecode without a time in it: the image's root may be read-only.
PYTHONHASHSEED=0 python3 -m compileall -q -s "$root" --invalidation-mode unchecked-hash \
  "$root/opt/server/yolov5_server" "$root/opt/client"
# Whatever the rights in the checkout are.
chmod -R u=rwX,go=rX "$root"
