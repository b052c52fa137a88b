# One swarm of skep and the Docker Engine on a kernel with IPVS, which the Docker Engine needs for service
# addresses and its mesh: each reaches the other's tasks by name, by address and by published port.
. /host/check.sh
# dockerd gives its containerd 15 s, which emulation does not always keep to.
for try in 1 2 3; do
    if /opt/bin/lab up --engines skep,dockerd --swarm >lab.out; then break; fi
    [ $try -lt 3 ] || exit 1
done
folder=$(sed -n 's/^lab down //p' lab.out)
router=$(basename "$folder")-r
h1() { DOCKER_HOST=unix://$folder/h1/docker.sock docker "$@"; }
h2() { DOCKER_HOST=unix://$folder/h2/docker.sock docker "$@"; }
outside() { ip netns exec "$router" curl -sS -m 4 "http://$1/"; }

# service NAME PORT OPTION...: its page is its host's name.
service() {
    local name=$1 port=$2; shift 2
    h1 service create -q --detach --no-resolve-image --name "$name" --hostname "$name-{{.Node.Hostname}}" \
        --network web -p "$port:80" "$@" httpd sh -c 'hostname >/www/index.html; exec httpd -f -p 80 -h /www'
}
h1 network create -d overlay --attachable web
service one 8081 --constraint node.hostname==sathish-vm1
service two 8082 --constraint node.hostname==sathish-vm2
service all 8083 --mode global
for host in h1 h2; do $host run -d --name caller --network web httpd sleep 100000; done
all_up() { [ "$(h1 service ls --format '{{.Replicas}}' | sort | tr '\n' ' ')" = '1/1 1/1 2/2 ' ]; }
until_ok all_up

# is WORD COMMAND...: what it says.
is() { local word=$1; shift; [ "$("$@" 2>/dev/null)" = "$word" ]; }
# six COMMAND...: six answers show both tasks.
six() { [ "$(for _ in 1 2 3 4 5 6; do "$@"; done 2>/dev/null | sort -u | grep -c sathish)" = 2 ]; }
# in_caller N COMMAND...: a program of the machine in the network of host N's caller. The image's busybox is linked
# statically, and its wget does not survive emulation.
in_caller() {
    local number=$1; shift
    nsenter -t "$(cat "$folder/h$number/init-pid")" -n -m -p -- nsenter --net="$(key "$number")" "$@"
}
key() { "h$1" inspect -f '{{.NetworkSettings.SandboxKey}}' caller; }
address() { h1 service inspect -f '{{range .Endpoint.VirtualIPs}}{{println .Addr}}{{end}}' "$1" | sed -n 's|^\(10\.0\.1\.[0-9]*\)/.*|\1|p'; }
named() { "h$1" exec caller nslookup "$2" | grep -q "$3\$"; }
for host in 1 2; do
    for service in one:1 two:2; do
        name=${service%:*} number=${service#*:}
        until_ok named "$host" "$name" "$(address "$name")" && echo "ok   h$host knows $name"
        until_ok is "$name-sathish-vm$number" in_caller "$host" curl -sS -m 4 "http://$(address "$name")/"
        wants "$name-sathish-vm$number" in_caller "$host" curl -sS -m 4 "http://$(address "$name")/"
    done
    until_ok six in_caller "$host" curl -sS -m 4 "http://$(address all)/" && echo "ok   h$host reaches both tasks of all"
done
for host in 1 2; do
    address=192.168.68.$((108 + host))
    for service in one:8081:1 two:8082:2; do
        IFS=: read -r name port number <<<"$service"
        until_ok is "$name-sathish-vm$number" outside "$address:$port"
        wants "$name-sathish-vm$number" outside "$address:$port"
    done
    until_ok six outside "$address:8083" && echo "ok   $address:8083 reaches both tasks of all"
done
/opt/bin/lab down "$folder"
exit $failed
