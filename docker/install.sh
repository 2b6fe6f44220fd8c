#!/bin/sh
# Installs loftr_ros into an environment of its own: docker/install.sh PREFIX SOURCE [EXTRAS]
#
#   PREFIX  folder of the environment, made here
#   SOURCE  a checkout, or a source distribution
#   EXTRAS  of setup.py, with commas between: archive,openvino
#
# TORCH_INDEX names the package index that has the torch for this machine, TORCH another requirement than the usual one.
# With a ROS 2 sourced it is built against that one and sees its Python packages; without, ROS 2 comes from PyPI.
set -eu

prefix=$1
source=$2
extras=${3:-}

if [ -n "${AMENT_PREFIX_PATH:-}" ]; then
    python3 -m venv --system-site-packages "$prefix"
    # cv_bridge and the system's SciPy and Matplotlib are compiled against NumPy 1, up to Kilted.
    echo 'numpy>=1.26,<2' > "$prefix/constraints.txt"
else
    python3 -m venv "$prefix"
    : > "$prefix/constraints.txt"
fi
# A build in isolation is not bound by it: what is compiled against NumPy 2 runs with 1.26 too.
pip_install() {
    "$prefix/bin/pip" install --no-cache-dir --constraint "$prefix/constraints.txt" "$@"
}
# First, and from its own index: which torch fits the machine is nothing that PyPI knows.
pip_install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "${TORCH:-torch>=2.2,<2.14}"
pip_install "$source${extras:+[$extras]}"
# Whatever is missing shows here, and not on the robot.
"$prefix/bin/python" -c 'import loftr_ros; loftr_ros.load_matcher(backend="torch", device="cpu"); import loftr_ros.msg'
