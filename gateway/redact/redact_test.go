package redact_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/redact"
	"ptgate/gateway/session"
)

const (
	addr = "192.0.2.77"
	host = "hidden.example"
	bare = "hidden" // without a dot
)

func TestText(t *testing.T) {
	ip := net.ParseIP(addr)
	refused := &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: ip}, Addr: &net.TCPAddr{IP: ip, Port: 443}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	noHost := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: bare, Server: addr + ":53", IsNotFound: true}}
	exit := &adapter.ExitError{Stderr: []string{"client " + addr, `says "` + bare + `" twice`}}
	_, parseErr := netip.ParseAddr(host)
	wrong := []string{"http://" + host + "/%zz"} // in a list, or a linter sees that it is wrong
	_, urlErr := url.Parse(wrong[0])
	_, splitErr := net.ResolveTCPAddr("tcp", bare)
	certificate := &x509.Certificate{DNSNames: []string{bare}}
	short := strings.Repeat("x", 3)
	for _, tt := range []struct {
		err  error
		want string // "": nothing is known of it
	}{
		{exit, "transport program ended: <nil> (what it said is left out)"},
		{&adapter.StartError{Program: "/usr/bin/pt", Stage: "handshake", Message: bare, Stderr: []string{bare}, Err: errors.New(bare)},
			`start "/usr/bin/pt": handshake (what it said is left out)`},
		{&adapter.StartError{Program: "pt", Stage: "handshake", Err: exit}, `start "pt": handshake: transport program ended: <nil> (what it said is left out)`},
		{&adapter.StartError{Program: "pt", Stage: adapter.StageMethods, Err: adapter.ErrStartTimeout}, `start "pt": methods: not ready in time`},
		{&adapter.MethodError{Transport: "obfs4", Message: bare, Err: adapter.ErrRefused}, "transport obfs4: refused by the transport program (what it said is left out)"},
		{&adapter.MethodError{Transport: "obfs4", Message: "listen tcp " + addr + ":443: bind: address already in use", Err: adapter.ErrRefused},
			"transport obfs4: refused by the transport program (it said: address already in use; the rest is left out)"},
		{&adapter.DialError{Transport: "obfs4", Stage: adapter.StageRequest, Err: adapter.ReplyGeneralFailure},
			"dial obfs4: request: socks reply 0x01: general failure"},
		{&builtin.DialError{Transport: "obfs4", Stage: builtin.StageConnect, Err: refused}, "obfs4: connect: dial: connect: connection refused"},
		{&builtin.DialError{Transport: "obfs4", Stage: builtin.StageConnect, Err: builtin.ErrFiltered}, "obfs4: connect: filtered: nothing answers at that address and port"},
		{&builtin.DialError{Transport: "webtunnel", Stage: builtin.StageConnect, Err: noHost}, "webtunnel: connect: dial: name look-up: no such host"},
		{&builtin.DialError{Transport: "webtunnel", Stage: builtin.StageHandshake, Err: errors.New(bare)}, "webtunnel: handshake"},
		{&builtin.DialError{Transport: "meek_lite", Stage: builtin.StageHandshake, Err: fmt.Errorf("%w (%v)", context.DeadlineExceeded, noHost)},
			"meek_lite: handshake: context deadline exceeded"},
		{&builtin.ProxyError{Scheme: "http", Code: 502}, "http proxy answered 502"},
		{&builtin.PanicError{Transport: "obfs4", Value: bare}, "obfs4: panic in the transport: string"},
		{&builtin.PanicError{Transport: "obfs4", Value: outOfRange(short, 3)}, "obfs4: panic in the transport: runtime error: index out of range [3] with length 3"},
		{answer.New(answer.Timeout, errors.New(bare)), "timeout"},
		{answer.Errorf(answer.NoBridge, "bridge %q: %w", bare, refused), "dial: connect: connection refused"},
		{&session.AuthError{What: "asks for a user"}, "the far end asks for a user"},
		{&session.Lost{Stage: "reply", Err: refused}, "carrier lost, awaiting reply: dial: connect: connection refused"},
		{&socks5.Error{Stage: socks5.StageMethod, Err: &socks5.MethodError{Chosen: 1, Offered: 2}}, "socks5: method: method 0x01 was chosen, 0x02 was offered"},

		{refused, "dial: connect: connection refused"},
		{&net.OpError{Op: bare, Net: bare, Err: os.NewSyscallError(bare, syscall.ECONNREFUSED)}, "connection refused"},
		{fmt.Errorf("direct: %w", refused), "dial: connect: connection refused"},
		{noHost, "dial: name look-up: no such host"},
		{&net.DNSError{Err: "read udp " + addr + ":53: i/o timeout", Name: bare, IsTimeout: true}, "name look-up: timeout"},
		{&net.DNSError{Err: "server misbehaving", Name: bare, Server: addr}, "name look-up failed"},
		{errors.Join(refused, noHost), "dial: connect: connection refused: dial: name look-up: no such host"},
		{fmt.Errorf("both %s: %w, and %w", bare, noHost, io.EOF), "dial: name look-up: no such host: EOF"},
		{&url.Error{Op: "Get", URL: "https://" + host, Err: io.ErrUnexpectedEOF}, "Get: unexpected EOF"},
		{urlErr, "parse: an error of type url.EscapeError"},
		{splitErr, "an address that makes no sense"},
		{parseErr, "an error of type netip.parseAddrError"},
		{&net.ParseError{Type: "IP address", Text: bare}, "an address that makes no sense"},
		{textproto.ProtocolError("malformed MIME header line: " + bare), "an error of type textproto.ProtocolError"},

		{x509.HostnameError{Certificate: certificate, Host: bare}, "the certificate is for another name"},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: certificate, Host: bare}}, "the certificate is for another name"},
		// As a library does that puts the text of an error into its own.
		{fmt.Errorf("tls: failed to verify certificate: %v", x509.HostnameError{Certificate: certificate, Host: bare}), ""},
		{x509.UnknownAuthorityError{Cert: certificate}, "the certificate is of an unknown authority"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.Expired, Detail: bare}, "the certificate has expired or is not yet valid"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.CANotAuthorizedForThisName, Detail: bare}, "the certificate is not valid"},
		{&net.OpError{Op: "remote error", Err: tls.AlertError(112)}, "remote error: tls: unrecognized name"},

		{errors.New("error dialing " + bare), ""},
		{&named{bare}, "an error of type *redact_test.named"},
		{adapter.WithoutAddresses(errors.New(bare)), unknown},
		{adapter.Constant("no route"), "no route"},

		{&os.PathError{Op: "open", Path: "/var/lib/ptgate/obfs4_state.json", Err: syscall.EACCES}, "open /var/lib/ptgate/obfs4_state.json: permission denied"},
		{&exec.Error{Name: "obfs4proxy", Err: exec.ErrNotFound}, `exec: "obfs4proxy": executable file not found in $PATH`},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), "i/o timeout"},
		{io.EOF, "EOF"},
	} {
		want := tt.want
		if want == "" {
			want = unknown
		}
		if got := redact.Text(tt.err, true); got != want {
			t.Errorf("%v:\n got %q\nwant %q", tt.err, got, want)
		}
		if got := redact.Text(tt.err, false); got != tt.err.Error() {
			t.Errorf("not private: %q, want %q", got, tt.err)
		}
	}
	if got := redact.Text(nil, true); got != "" {
		t.Errorf("no error: %q", got)
	}
}

// unknown is the text of an error of which nothing is known.
const unknown = "an error that is not shown, because it may have addresses in it"

type named struct{ text string }

func (e *named) Error() string { return e.text }

// outOfRange returns what the runtime panics with.
func outOfRange(s string, i int) (v any) {
	defer func() { v = recover() }()
	return s[i]
}

// FuzzText: whatever stands in an error's text, and however the error is wrapped,
// nothing of it gets through.
func FuzzText(f *testing.F) {
	f.Add("hidden.example")
	f.Add("hidden")
	f.Fuzz(func(t *testing.T, secret string) {
		leaf := errors.New(secret)
		without := redact.Text(errors.New("x"), true)
		for _, err := range []error{
			leaf, fmt.Errorf("%s: %w", secret, leaf), errors.Join(leaf, leaf), fmt.Errorf("%w %w", leaf, leaf),
			&net.OpError{Op: secret, Net: secret, Err: leaf}, &url.Error{Op: secret, URL: secret, Err: leaf}, os.NewSyscallError(secret, leaf),
		} {
			if got := redact.Text(err, true); got != without {
				t.Errorf("%#v: %q", err, got)
			}
		}
	})
}

func Example() {
	err := fmt.Errorf("webtunnel: connect: %w", &net.DNSError{Err: "no such host", Name: "front.example", Server: "192.0.2.53:53", IsNotFound: true})
	fmt.Println(redact.Text(err, false))
	fmt.Println(redact.Text(err, true))
	// Output:
	// webtunnel: connect: lookup front.example on 192.0.2.53:53: no such host
	// name look-up: no such host
}
