#!/bin/bash
# Machines as namespaces of this one, so that `ray stop` on one of them cannot stop any other Ray:
#   LAB=FOLDER NODES="head worker" unshare --mount --net --fork bash lab.sh COMMAND …
# runs COMMAND on "the laptop" (10.77.0.1), with an sshd on each node (10.77.0.10, 10.77.0.11 …). Needs root. LAB holds keys/,
# sshd_config, passwd (in which root's home is LAB/home), bashrc, and an empty home/.
set -u
here=$(dirname "$(realpath "$0")")
mount --make-rprivate /
mount -t tmpfs none /run && mkdir -p /run/netns
ip link set lo up
ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0 && ip link set br0 up
last=10
for node in $NODES; do
  ip netns add "$node"
  ip link add "v$node" type veth peer name "e$node"
  ip link set "v$node" master br0 up
  ip link set "e$node" netns "$node"
  ip netns exec "$node" ip link set lo up
  ip netns exec "$node" ip addr add "10.77.0.$last/24" dev "e$node"
  ip netns exec "$node" ip link set "e$node" up
  ip netns exec "$node" ip route add default via 10.77.0.1
  ip netns exec "$node" unshare --mount --uts --pid --fork --kill-child --mount-proc \
    bash "$here/node.sh" "$node" "10.77.0.$last" > "$LAB/sshd-$node.log" 2>&1 &
  last=$((last + 1))
done
mount -t tmpfs none "$LAB/home"
mount -t tmpfs none /dev/shm
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
mount --bind "$LAB/passwd" /etc/passwd
export HOME=$LAB/home
sleep 2
"$@"
status=$?
kill -KILL $(jobs -p)  # unshare ignores weaker signals; --kill-child also kills its node
exit $status
