#!/usr/bin/env bash
# Install the RabbitMQ and Redis binaries through apt, or say what to type. Does nothing when they are there.
# --tests: OpenSSH too, which deploying agents is tested against; and a headless Chromium for the dashboard's page,
# where apt has one: without it those tests are skipped.
set -euo pipefail

missing=() optional=()
command -v redis-server >/dev/null || missing+=(redis-server)
[ -n "$(compgen -G '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server')" ] \
  || command -v rabbitmq-server >/dev/null || missing+=(rabbitmq-server)
if [ "${1-}" = --tests ]; then
  command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
  command -v ssh >/dev/null || missing+=(openssh-client)
  command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null \
    || optional+=(chromium-headless-shell)
fi
if [ ${#missing[@]} -eq 0 ]; then
  [ ${#optional[@]} -eq 0 ] && exit 0
  # Nobody is bothered for what is optional: neither by an error, nor by lists of packages that are fetched in vain.
  apt-cache show "${optional[@]}" >/dev/null 2>&1 && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; } || exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "error: ${missing[*]} missing, and there is no apt here (install them with your package manager: brew install rabbitmq redis)" >&2
  exit 2
fi
if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "error: ${missing[*]} missing (type: sudo apt-get install --no-install-recommends ${missing[*]})" >&2
  exit 2
fi

echo "installing ${missing[*]} ${optional[*]} through apt"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1; }
if ! { apt update && { [ ${#missing[@]} -eq 0 ] || apt install --no-install-recommends "${missing[@]}"; }; }; then
  tail -n 20 "$log" >&2
  echo "error: apt could not install ${missing[*]} (its last words are above)" >&2
  exit 1
fi
if [ ${#optional[@]} -gt 0 ] && ! apt install --no-install-recommends "${optional[@]}"; then
  echo "no ${optional[*]} through apt: the dashboard's page is not tested in a browser"
fi

# Debian starts what it installs. The local stack runs nodes of its own on the same ports, so services that
# this very run brought in are switched off again; one that was there before is left alone.
if [ -d /run/systemd/system ]; then
  for service in "${missing[@]}"; do
    case $service in
      openssh-server) units=(ssh.socket ssh.service) ;;
      *) units=("$service.service") ;;
    esac
    "${as_root[@]}" systemctl disable --quiet --now "${units[@]}" || true
  done
fi
