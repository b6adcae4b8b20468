#!/bin/bash
# Checks everything: format, vet, staticcheck, the unit tests with the race
# detector, and the built program against the real programs of integration/.
#
# It needs Debian or Ubuntu, Go, and root or sudo: the tests make network
# namespaces and start an sshd, and what is not installed is installed. A program
# that can't be had is a failure; nothing is skipped.
#
#   integration/test.sh                      everything
#   integration/test.sh -run Interop         only these integration tests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

readonly staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What the tests run, and the package of each. Python 3's modules are python3.NAME, and
# those of Node node.NAME.
readonly needed="
	obfs4proxy:obfs4proxy tor:tor curl:curl git:git tshark:tshark haproxy:haproxy ss:iproute2 ssh:openssh-client sshd:openssh-server
	nc:netcat-openbsd nginx:nginx-light caddy:caddy apache2:apache2 microsocks:microsocks chromium:chromium
	perl:perl stunnel4:stunnel4 promtool:prometheus
	ip:iproute2 nft:nftables unshare:util-linux mount:mount systemd-analyze:systemd gcc:gcc
	wget:wget python3.httpx:python3-httpx python3.requests:python3-requests
	proxychains4:proxychains4 corkscrew:corkscrew dpkg-deb:dpkg node:nodejs npm:npm node.undici:node-undici java:default-jdk-headless javac:default-jdk-headless
	debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux lintian:lintian rpm:rpm
	zbarimg:zbar-tools script:bsdutils"

# What reads bytes from outside, and the fuzz target of each: both fronts, SOCKS4, the far end,
# the carrier, the session, the SOCKS codec, the configuration, bridge lines. Two run at a time.
readonly fuzzed="
	gateway/inbound:FuzzMixed gateway/inbound:FuzzHTTP gateway/socks:FuzzParse4 gateway/exit:FuzzSession
	gateway/carrier:FuzzConn gateway/session:FuzzParser gateway/session:FuzzEnd
	adapter/socks5:FuzzReadAnswers gateway/config:FuzzLoad adapter:FuzzBridgeLine"

export PATH="$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin"
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"
export PTGATE_TEST_ALL=1 # no test may leave itself out

step() { printf '\n== %s\n' "$*"; }
have() {
	case $1 in
	python3.*) /usr/bin/python3 -c "import ${1#python3.}" ;;
	node.*) NODE_PATH=/usr/share/nodejs node -e "require('${1#node.}')" ;;
	*) command -v "$1" ;;
	esac >/dev/null 2>&1
}
fuzz() { # PACKAGE:TARGET
	local out
	# Go before 1.27 takes the end of the time for a failure now and then (go.dev/issue/75804).
	# It says no more than that then. If it has just found a failing input, and was making that
	# smaller, it says so further up.
	if ! out=$(go test -run '^$' -fuzz "^${1#*:}\$" -fuzztime 20s -fuzzminimizetime 50x -parallel 1 "./${1%:*}" 2>&1) &&
		{ grep -q 'failing input' <<<"$out" ||
			! grep -Pzq -- '--- FAIL: \S+ \([\d.]+s\)\n    context deadline exceeded\nFAIL\n' <<<"$out"; }; then
		printf '%s\n%s\n' "$1" "$out"
		return 1
	fi
	printf '%-40s %s\n' "$1" "$(grep -o 'execs: [0-9]*' <<<"$out" | tail -1)"
}
export -f fuzz
die() { printf 'test.sh: %s\n' "$*" >&2; exit 1; }

if [ "$(id -u)" -ne 0 ]; then
	sudo -n true 2>/dev/null || die "needs root, or sudo without a password: the tests make network namespaces"
	exec sudo -n --preserve-env=GOFLAGS,GOPROXY,GOSUMDB,GONOSUMDB,GOPRIVATE,GOMODCACHE,GOCACHE,CI,HOME,PATH \
		env "PATH=$PATH" bash integration/test.sh "$@"
fi
command -v go >/dev/null || die "go is not installed, or not in PATH"

missing=()
for pair in $needed; do
	have "${pair%%:*}" || missing+=("${pair##*:}")
done
[ -f /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
if [ "${#missing[@]}" -gt 0 ]; then
	step "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
for pair in $needed; do
	have "${pair%%:*}" || die "${pair%%:*} is missing even after installing ${pair##*:}"
done

# What looks for pages that some people can't read or reach. Debian has no package of it.
readonly axe=axe-core@4.14.1
if [ ! -f "$(npm root --global)/axe-core/axe.min.js" ]; then
	step "installing $axe"
	npm install --global --silent "$axe"
fi

if [ "$#" -eq 0 ]; then
	step "gofmt"
	unformatted=$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r gofmt -l)
	[ -z "$unformatted" ] || die "not formatted as gofmt does it:"$'\n'"$unformatted"
	step "go vet"
	go vet ./...
	go vet -tags integration ./integration/...
	GOARCH=386 CGO_ENABLED=0 go vet ./...
	for system in darwin freebsd windows; do # a minute each for the whole program
		GOOS=$system CGO_ENABLED=0 go vet ./adapter ./routes ./gateway/relay
	done
	step "staticcheck"
	go run "$staticcheck" ./...
	go run "$staticcheck" -tags integration ./integration/...
	step "licences, vulnerabilities, and a release that is built twice, with its packages"
	go run ./integration/release licences
	go run ./integration/release vulnerabilities
	PTGATE_TEST_PACKAGES=$(mktemp -d)
	export PTGATE_TEST_PACKAGES # of the tests in integration/service
	trap 'rm -r "$PTGATE_TEST_PACKAGES"' EXIT
	go run ./integration/release packages "$PTGATE_TEST_PACKAGES"
	if [ "$(go env GOARCH)" = amd64 ]; then
		step "the program with 32 bits, which the same machine runs"
		go run ./integration/release systems linux/386 # by hand, without a name: all systems
	fi
	step "fuzzing"
	printf '%s\n' $fuzzed | xargs -P 2 -I{} bash -c 'fuzz {}' || die "fuzzing found something: the input is in testdata/fuzz of the package"
	step "unit tests, with the race detector"
	go test -race -p 2 -timeout 8m ./...
	if [ "$(go env GOARCH)" = amd64 ]; then
		step "routes with 32 bits, which the same machine runs"
		GOARCH=386 CGO_ENABLED=0 go test ./routes
	fi
fi
step "integration tests"
go test -tags integration -count=1 -p 2 -timeout 20m -v "$@" ./integration/... |
	grep --line-buffered -vE '^(=== (RUN|PAUSE|CONT|NAME)|testing: warning)|no test files'
step "all passed"
