#!/bin/bash
# One machine of the lab, reached only by SSH: it has its own home, shared memory, /tmp/ray and processes.
set -u
mount --make-rprivate /
mkdir -p /run/sshd
mount -t tmpfs none /dev/shm
mount -t tmpfs none "$LAB/home"
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
mount --bind "$LAB/passwd" /etc/passwd
cp "$LAB/bashrc" "$LAB/home/.bashrc"
hostname "$1"
grep -v 127.0.1.1 /etc/hosts > "$LAB/hosts-$1"
echo "$2 $1" >> "$LAB/hosts-$1"
mount --bind "$LAB/hosts-$1" /etc/hosts
exec /usr/sbin/sshd -D -e -f "$LAB/sshd_config"
