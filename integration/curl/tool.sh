#!/bin/sh
# Runs a program of curl's tests that is no curl, with the proxy $CURL_ALL_PROXY. Such a
# program knows only what the environment says, and runtests.pl removes proxies from there.
[ -z "$CURL_ALL_PROXY" ] || export all_proxy="$CURL_ALL_PROXY"
exec timeout --foreground 15 "${0%/*}/programs/${0##*/}" "$@"
