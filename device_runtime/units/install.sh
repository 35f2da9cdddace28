#!/bin/sh
# Installs this bundle; as root, without a network, any number of times. Nothing is changed before all is verified.
#   install.sh [--no-start]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
base=${RELIEF_BASE:-/opt/relief}
etc=${RELIEF_ETC:-/etc/relief}
python=${RELIEF_PYTHON:-python3}
wait=${RELIEF_WAIT:-120}
units=${RELIEF_UNITS:-/etc/systemd/system}

stop() { echo "relief: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || stop "run it as root: sudo $0"
command -v "$python" >/dev/null || stop "$python is missing on this board"
wheel=$(ls "$here"/wheels/relief_edge-*.whl 2>/dev/null | head -n 1)
[ -n "$wheel" ] || stop "wheels/: the runtime's own wheel is missing"
tool() { PYTHONPATH=$wheel PYTHONDONTWRITEBYTECODE=1 "$python" -m device_runtime.install --base "$base" "$@"; }

tool verify "$here"

# What there is of configuration stays: a board keeps what its owner wrote.
install -d -m 0755 "$base" "$base/slots"
install -d -m 0750 "$etc"
if [ -d "$here/config" ]; then
  (cd "$here/config" && find . -type f) | while read -r file; do
    if [ ! -e "$etc/$file" ]; then install -D -m 0640 "$here/config/$file" "$etc/$file"; fi
  done
fi
tool bundle "$here" --config "$etc/device.toml"
for script in launch firstboot; do
  install -m 0755 "$here/units/$script" "$base/.$script.new" && mv "$base/.$script.new" "$base/$script"
done
if [ -d "$units" ]; then
  install -m 0644 "$here"/units/*.service "$units/"
fi
if [ -n "${RELIEF_BASE:-}" ]; then
  exit 0 # not this machine's own place: whoever asked for another starts what is there
fi

"$base/firstboot"
if [ -d /run/systemd/system ] && [ "${1:-}" != --no-start ]; then
  systemctl daemon-reload
  systemctl enable --quiet relief-firstboot.service relief-device.service
  systemctl restart relief-device.service
  if [ -e "$etc/wants-identity" ] && [ ! -e "$etc/identity/cert.pem" ]; then
    echo "relief: installed; it waits for $etc/identity/cert.pem, the answer to $etc/identity/request.csr"
  elif ! tool watch "$wait"; then
    systemctl restart relief-device.service
    stop "the new version did not reach the broker; see: journalctl -u relief-device"
  fi
elif command -v systemctl >/dev/null; then
  systemctl --root=/ enable --quiet relief-firstboot.service relief-device.service
  echo "relief: installed and enabled; systemd does not run here, so nothing was started"
fi
