// Package answer has the one table that says what a client is told. For each reason
// why a request ends there is a SOCKS5 reply (RFC 1928 section 6), a SOCKS4 reply, an HTTP
// status, a Proxy-Status error (RFC 9209 section 2.3) and a text for a person.
//
// A client gets what stands in the table, and nothing else. The texts of errors go to
// the log. They may have the address of a bridge in them, so no client gets one.
package answer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"

	"ptgate/adapter"
)

// A Reason says why a request ended as it did. It is a row of the table.
type Reason uint8

// The rows of the table.
const (
	Success         Reason = iota
	Internal               // a fault of ptgate's
	Blocked                // a route says block, no route takes it, or the exit's policy says no
	Refused                // the destination refused the connection
	Unreachable            // the destination, or the network to it, can't be reached from the far end
	NotFound               // the destination's name does not exist
	NoBridge               // no bridge of the route works
	Timeout                // nobody answered in time
	Limit                  // a limit is reached, or the process is about to stop
	Credentials            // user or password missing or wrong
	BadRequest             // the destination makes no sense: empty name, port 0, control characters
	Command                // a command other than CONNECT
	BadResponse            // the destination closed the connection too early, or did not speak HTTP
	Malformed              // an HTTP request that can't be read, or that could be read in two ways
	TooLarge               // the header section of an HTTP request is too large
	Coding                 // an HTTP request with a transfer coding that is not known
	Version                // an HTTP request of another version than 1.0 and 1.1
	Unfinished             // a request whose client ended its side before it was complete
	Slow                   // a request that was not complete in time
	ExitPolicy             // the policy of the exit at the far end says no
	NoNames                // the exit can't look names up
	User                   // the far end does not take the bridge's user and password
	NameFailed             // a name server of the exit reports a failure
	UnreachableHere        // as Unreachable, with a route that is direct
	NoNamesHere            // as NoNames or NameFailed, with a route that is direct
)

type row struct {
	name   string
	socks  byte
	socks4 byte
	http   int
	error  string // RFC 9209 section 2.3
	text   string
}

// Details of SOCKS5 replies. RFC 1928 has one code for several reasons, and the port of a
// refusal means nothing there. An exit puts the detail into it, with the address 0.0.0.0,
// and a gateway understands it. Other clients do not look at it.
var details = map[Reason]uint16{ExitPolicy: 1, Blocked: 1, NotFound: 2, NoNames: 3, NameFailed: 4}

// Detail is what an exit puts into the port of a SOCKS5 refusal; 0: nothing.
func (r Reason) Detail() uint16 { return details[r] }

// FromExit is the reason for the reply of an exit, with its detail. It is that of FromSOCKS
// if the exit gives none that fits. Only an exit's policy is told by its code alone.
func FromExit(code byte, detail uint16) Reason {
	switch {
	case code == ExitPolicy.SOCKS():
		return ExitPolicy
	case code == NotFound.SOCKS() && detail == NotFound.Detail():
		return NotFound
	case code == NoNames.SOCKS() && detail == NoNames.Detail():
		return NoNames
	case code == NameFailed.SOCKS() && detail == NameFailed.Detail():
		return NameFailed
	}
	return FromSOCKS(code)
}

// The replies of SOCKS4. Its protocol text gives 93 to a server that asks identd who the
// user is, and gets another answer. It is the only reply about the user.
const (
	granted4  = 90
	rejected4 = 91
	user4     = 93
)

var table = [...]row{
	Success: {"success", 0x00, granted4, http.StatusOK, "", ""},
	Internal: {"internal", 0x01, rejected4, http.StatusInternalServerError, "proxy_internal_error",
		"The proxy made a mistake. Its log says more."},
	Blocked: {"blocked", 0x02, rejected4, http.StatusForbidden, "destination_ip_prohibited",
		"No route of this gateway leads there, or a route blocks it; `ptgate explain NAME` tells which. " +
			"If that says direct, the address is a private one, which that route has to name, or to allow with private = true. " +
			"Otherwise add or change a [[route]] in the gateway's configuration."},
	Refused: {"refused", 0x05, rejected4, http.StatusBadGateway, "connection_refused",
		"The destination refused the connection: it is up, but nothing listens on that port."},
	Unreachable: {"unreachable", 0x04, rejected4, http.StatusBadGateway, "destination_ip_unroutable",
		"The far end of the bridge can't reach the destination; the route and the bridge are fine. Try another destination. If the far end is no ptgate server, the name may also not exist."},
	NotFound: {"not found", 0x04, rejected4, http.StatusBadGateway, "dns_error",
		"The destination's name does not exist. Check its spelling."},
	NoBridge: {"no bridge", 0x03, rejected4, http.StatusBadGateway, "destination_unavailable",
		"No bridge for that destination works at the moment. The bridge may be down or blocked; the gateway's log, its status page and `ptgate status` say why, and what to do."},
	Timeout: {"timeout", 0x06, rejected4, http.StatusGatewayTimeout, "connection_timeout",
		"Nobody answered in time: the link may be slow or cut, the bridge may be silent, or the destination is down. " +
			"`ptgate status` tells whether the bridge works; if it does, try again later."},
	Limit: {"limit", 0x01, rejected4, http.StatusServiceUnavailable, "connection_limit_reached",
		"The proxy, or the server at the far end, has as many connections as it may have, or is about to stop: try again in a moment. If it stays so, you may have used up what the server gives you in a month: ask its operator."},
	Credentials: {"credentials", 0xff, user4, http.StatusProxyAuthRequired, "http_request_denied",
		"This proxy asks for a user name and a password: they are missing or wrong."},
	BadRequest: {"bad request", 0x01, rejected4, http.StatusBadRequest, "http_request_error",
		"The proxy can't make sense of that destination. It takes HOST:PORT, with a port from 1 to 65535."},
	Command: {"command", 0x07, rejected4, http.StatusMethodNotAllowed, "http_request_denied",
		"This proxy opens TCP connections only."},
	BadResponse: {"bad response", 0x01, rejected4, http.StatusBadGateway, "http_protocol_error",
		"The destination was reached, but it broke the connection off or did not answer in HTTP. Try again; if it stays so, the service itself is at fault."},
	Malformed: {"malformed", 0x01, rejected4, http.StatusBadRequest, "http_request_error",
		"The proxy refuses this request: it is not HTTP, or another program could read it in another way. The program that sent it is at fault."},
	TooLarge: {"too large", 0x01, rejected4, http.StatusRequestHeaderFieldsTooLarge, "http_request_error",
		"The address and the header fields of the request are longer than the proxy takes. In a browser, deleting the cookies of the site may help."},
	Coding: {"coding", 0x01, rejected4, http.StatusNotImplemented, "http_request_error",
		"The request's content has a transfer coding that the proxy does not know. It knows chunked only."},
	Version: {"version", 0x01, rejected4, http.StatusHTTPVersionNotSupported, "http_request_error",
		"The proxy speaks HTTP/1.1 and HTTP/1.0 with programs. What goes through a tunnel (CONNECT) may be of any version."},
	Unfinished: {"unfinished", 0x01, rejected4, http.StatusBadRequest, "http_request_error",
		"The request ended before it was complete. The program that sent it, or something between it and the proxy, broke it off."},
	Slow: {"slow", 0x01, rejected4, http.StatusRequestTimeout, "http_request_error",
		"The request was not complete in time. The link between the program and the proxy may be slow or cut. Try again."},
	ExitPolicy: {"exit policy", 0x02, rejected4, http.StatusForbidden, "destination_ip_prohibited",
		"The exit at the far end refuses that destination; the route and the bridge are fine. The refusal comes from allow or deny of [exit] in the server's configuration, " +
			"which by default keep clients from the server itself and from private networks. Ask its operator."},
	NoNames: {"no names", 0x04, rejected4, http.StatusBadGateway, "dns_error",
		"The server at the far end cannot look up names at the moment: its name servers do not answer. The bridge works. Its operator finds more in the server's log."},
	User: {"user", 0x03, rejected4, http.StatusBadGateway, "destination_unavailable",
		"The server at the far end does not take the user and password of the bridge: they are missing or wrong, or the invitation was revoked or has ended. " +
			"Ask its operator for a new one (`ptgate invite`), or set user and password of the bridge as in users of [exit] there."},
	NameFailed: {"name failed", 0x04, rejected4, http.StatusBadGateway, "dns_error",
		"The server at the far end could not look the name up: a name server reported a failure. The bridge works. Most often that domain's own name servers are at fault: try again later. If it is so with every name, ask the server's operator."},
	UnreachableHere: {"unreachable here", 0x04, rejected4, http.StatusBadGateway, "destination_ip_unroutable",
		"This machine can't reach the destination. Its route is direct, so no bridge is asked: is this machine online, and can it use IPv6, if the address is one? `ptgate explain NAME` tells which route takes it."},
	NoNamesHere: {"no names here", 0x04, rejected4, http.StatusBadGateway, "dns_error",
		"This machine can't look the name up: its name servers do not answer, or report a failure. The route is direct, so no bridge is asked. Look at its network and at /etc/resolv.conf; `ptgate explain NAME` tells which route takes it."},
}

func (r Reason) row() row {
	if int(r) >= len(table) {
		r = Internal
	}
	return table[r]
}

// SOCKS is the reply code of RFC 1928 section 6. That of Credentials is 0xFF, which is
// an answer to the greeting, not to a request.
func (r Reason) SOCKS() byte { return r.row().socks }

// SOCKS4 is the reply code of SOCKS4 and SOCKS4a. They have one code for most reasons.
func (r Reason) SOCKS4() byte { return r.row().socks4 }

// HTTP is the status code.
func (r Reason) HTTP() int { return r.row().http }

// ProxyStatus is the value of the Proxy-Status header field (RFC 9209); "" for Success.
func (r Reason) ProxyStatus() string {
	if e := r.row().error; e != "" {
		return "ptgate; error=" + e
	}
	return ""
}

// Text tells a person what happened and what to do.
func (r Reason) Text() string { return r.row().text }

// Named finds a reason by its name; ok is false if there is none of that name.
func Named(name string) (r Reason, ok bool) {
	for i := range table {
		if table[i].name == name {
			return Reason(i), true
		}
	}
	return 0, false
}

// String is the reason's name in logs and metrics.
func (r Reason) String() string {
	if int(r) < len(table) {
		return table[r].name
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// MarshalText gives the name, for logs that are JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// An Error is an error with a reason.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Reason.String()
	}
	return e.Err.Error()
}

// Class is what a private log may show; see adapter.Class.
func (e *Error) Class() string { return cmp.Or(adapter.Class(e.Err), e.Reason.String()) }

func (e *Error) Unwrap() error { return e.Err }

// New returns err with a reason, as an *Error. err may be nil.
func New(r Reason, err error) error { return &Error{r, err} }

// Errorf is fmt.Errorf with a reason. It returns an *Error.
func Errorf(r Reason, format string, args ...any) error {
	return &Error{r, fmt.Errorf(format, args...)}
}

// Of returns the reason of err. It is that of the outermost *Error in err. Without an
// *Error, it is the reason that an error of the standard library stands for. It is
// Success for nil, and Internal for all other errors.
func Of(err error) Reason {
	if err == nil {
		return Success
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dns.IsTimeout:
			return Timeout
		case dns.IsNotFound:
			return NotFound
		}
		return Unreachable
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT):
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH),
		errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT),
		errors.Is(err, syscall.ECONNRESET):
		return Unreachable
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return Limit
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, fs.ErrPermission):
		return Blocked // by a firewall
	}
	return Internal
}

// FromSOCKS is the reason for a far end's reply code. It is Internal for a code that
// RFC 1928 does not define.
func FromSOCKS(code byte) Reason {
	switch code {
	case 0x00:
		return Success
	case 0x01:
		return Limit
	case 0x02:
		return Blocked
	case 0x03, 0x04:
		return Unreachable
	case 0x05:
		return Refused
	case 0x06:
		return Timeout
	case 0x07:
		return Command
	case 0x08:
		return BadRequest
	case 0xff:
		return Credentials
	}
	return Internal
}
