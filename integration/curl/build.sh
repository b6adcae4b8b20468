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

(
	./configure --with-openssl --with-nghttp2 --with-libidn2 --with-zlib --without-brotli --without-zstd --without-libpsl \
		--enable-websockets --disable-shared --disable-ldap --disable-manual --disable-dependency-tracking
	for dir in lib src tests/server; do
		make -s -j"$(nproc)" -C $dir
	done
) >../build.log 2>&1 || die "build:"$'\n'"$(tail -20 ../build.log)"

# What the tests run and read.
mkdir -p ../done/src ../done/lib
cp src/curl ../done/src
cp lib/curl_config.h ../done/lib
cp curl-config ../done
cp -r tests ../done
find ../done/tests -name '*.[cho]' -delete
mv -T ../done "$out"
