# The package under systemd: units, socket activation, and what a restart of the unit leaves running.
. /host/check.sh
dpkg --install /host/skep.deb || exit 1
systemctl start skep.socket
wants inactive systemctl is-active skep.service
# The first question starts the daemon.
until_ok docker version
wants active systemctl is-active skep.service
image
docker run -d --name web --restart always -p 8080:80 bb sh -c 'echo here >/tmp/index.html; exec httpd -f -p 80 -h /tmp'
until_ok curl -sSf http://127.0.0.1:8080/
pid=$(docker inspect -f '{{.State.Pid}}' web)
systemctl restart skep.service
wants "$pid" docker inspect -f '{{.State.Pid}}' web
systemctl stop skep.service skep.socket
wants here curl -sS http://127.0.0.1:8080/
systemctl start skep.service
systemctl daemon-reload
wants "$pid true" docker inspect -f '{{.State.Pid}} {{.State.Running}}' web
wants here docker exec web cat /tmp/index.html
docker rm -f web
exit $failed
