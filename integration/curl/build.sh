#!/bin/bash
# Builds curl and its test servers from Debian's source package, with Debian's own
# later fixes, into the directory that it is given. Needs root, apt and a C compiler.
#
#   integration/curl/build.sh DIR
#
# DIR is complete or not there at all. The sources come from where this machine's
# packages come from; its own package lists stay as they are.
set -euo pipefail
exec </dev/null >&2

readonly version=7.88.1 # inherent.txt holds for this one
readonly out=$1
readonly websocket="lib2301 lib2302 lib2304 lib2305" # the programs of tests/libtest that are run
readonly needed="gcc:gcc make:make dpkg-source:dpkg-dev
	/usr/include/openssl/ssl.h:libssl-dev /usr/include/zlib.h:zlib1g-dev
	/usr/include/nghttp2/nghttp2.h:libnghttp2-dev /usr/include/idn2.h:libidn2-dev"

die() { printf 'build.sh: %s\n' "$*"; exit 1; }
have() {
	case $1 in
	/usr/include/*) [ -e "$1" ] || [ -e "/usr/include/$(gcc -print-multiarch)/${1#/usr/include/}" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
missing=()
for pair in $needed; do
	have "${pair%%:*}" || missing+=("${pair##*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# The machine's own sources, as ones of source packages.
mkdir -p sources lists/partial
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ ! -f "$file" ] || sed -E 's/^Types:.*/Types: deb-src/; s/^deb([[:space:]])/deb-src\1/' "$file" >"sources/${file##*/}"
done
apt=(-qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$work/sources" -o "Dir::State::lists=$work/lists" -o "APT::Sandbox::User=root")
apt-get "${apt[@]}" update
apt-get "${apt[@]}" source curl >fetch.log 2>&1 || die "no source package:"$'\n'"$(tail fetch.log)"
cd curl-*/
[ "${PWD##*/}" = curl-$version ] || die "this system has ${PWD##*/}; the list of known failures is for $version, of Debian 12"

cp -r . ../websocket

build() { # DIR CONFIGURE'S ARGUMENTS
	cd "$1"
	./configure --enable-websockets --disable-shared --disable-ldap --disable-manual --disable-dependency-tracking \
		--without-brotli --without-zstd --without-libpsl "${@:2}"
	# These and no more: with --enable-debug the rest has a check of the code's style.
	make -s -j"$(nproc)" -C lib libcurl.la
	make -s -j"$(nproc)" -C src curl
}
everything() {
	build . --with-openssl --with-nghttp2 --with-libidn2 --with-zlib
	make -s -j"$(nproc)" -C tests/server
}
# The tests of WebSocket need a curl whose random numbers are known, and most of them are
# programs of their own. They need little else of curl.
websocket() {
	build ../websocket --enable-debug --without-ssl --without-zlib --without-nghttp2 --without-libidn2 --without-librtmp --without-libgsasl \
		--disable-{ftp,file,rtsp,dict,telnet,tftp,pop3,imap,smb,smtp,gopher,mqtt,ntlm,unix-sockets,warnings}
	make -s -j"$(nproc)" -C tests/libtest $websocket
}
everything >../build.log 2>&1 &
one=$!
websocket >../websocket.log 2>&1 &
other=$!
wait $one || die "build:"$'\n'"$(tail -20 ../build.log)"
wait $other || die "build:"$'\n'"$(tail -20 ../websocket.log)"

# What the tests run and read.
mkdir -p ../done/src ../done/lib
cp src/curl ../done/src
cp lib/curl_config.h ../done/lib
cp curl-config ../done
cp -r tests ../done
find ../done/tests -name '*.[cho]' -delete
mkdir -p ../done/websocket/src ../done/websocket/lib ../done/websocket/libtest
cd ../websocket
cp src/curl ../done/websocket/src
cp lib/curl_config.h ../done/websocket/lib
cp curl-config ../done/websocket
for program in $websocket; do
	cp tests/libtest/"$program" ../done/websocket/libtest
done
mv -T ../done "$out"
