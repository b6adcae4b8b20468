package inbound

import (
	"strings"

	"ptgate/gateway/destination"
	"ptgate/routes"
)

// cutURI cuts a request target in absolute-form (RFC 9112 section 3.2.2) into its parts,
// as they were written. authority has no user in it (RFC 9110 section 4.2.4). path is all
// that follows it up to the fragment, which no origin gets (RFC 9110 section 7.1).
func cutURI(s string) (scheme, authority, path string, ok bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" {
		return "", "", "", false
	}
	for _, c := range []byte(scheme) { // RFC 3986 section 3.1
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '+' || c == '-' || c == '.') {
			return "", "", "", false
		}
	}
	i := strings.IndexAny(rest, "/?#")
	if i < 0 {
		i = len(rest)
	}
	authority, path = rest[:i], rest[i:]
	authority = authority[strings.LastIndexByte(authority, '@')+1:]
	path, _, _ = strings.Cut(path, "#")
	return scheme, authority, path, true
}

// originForm is the request target for the origin. path is that of cutURI.
func originForm(method, path string) string {
	switch {
	case path == "" && method == "OPTIONS":
		return "*" // RFC 9112 section 3.2.4
	case path == "" || path[0] == '?':
		return "/" + path // RFC 9112 section 3.2.1
	}
	return path
}

// targetOf reads the authority of an http URI. Its port may be missing or empty (RFC 9110
// section 4.2.1).
func targetOf(authority string) (routes.Target, error) {
	host, port := authority, ""
	if i := strings.LastIndexByte(authority, ':'); i > strings.LastIndexByte(authority, ']') {
		host, port = authority[:i], authority[i+1:]
	}
	if port == "" {
		port = "80"
	}
	return destination.Parse(host + ":" + port)
}
