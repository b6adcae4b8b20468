#!/bin/sh
# Runs $CURL_TESTED with the options $CURL_WAY, which name a proxy, in front of each
# set of options: --next ends one and begins another. An option -q counts as the
# first one only.
case $1 in
-q) first=-q; shift ;;
*) first= ;;
esac
n=$#
# shellcheck disable=SC2086 # the options are words
set -- "$@" $first $CURL_WAY
while [ "$n" -gt 0 ]; do
	word=$1
	shift
	# shellcheck disable=SC2086
	case $word in
	--next | -:) set -- "$@" "$word" $CURL_WAY ;;
	*) set -- "$@" "$word" ;;
	esac
	n=$((n - 1))
done
exec timeout --foreground 15 "$CURL_TESTED" "$@"
