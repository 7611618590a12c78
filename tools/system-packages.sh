#!/bin/sh
# Installs Debian packages that are missing. Arguments: PACKAGE:PROGRAM, the program that shows whether it is there.
set -eu
missing=''
for pair in "$@"; do
    command -v "${pair#*:}" > /dev/null 2>&1 || missing="$missing ${pair%%:*}"
done
[ -z "$missing" ] && exit 0
as_root=''
[ "$(id -u)" = 0 ] || as_root=sudo
echo "installing$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing > /dev/null
