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
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/gateway/redact"
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
	for _, tt := range []struct {
		err  error
		want string
	}{
		{exit, "transport program ended: <nil>"},
		{&adapter.StartError{Program: "/usr/bin/pt", Stage: "handshake", Message: bare, Stderr: []string{bare}, Err: errors.New("no")},
			`start "/usr/bin/pt": handshake: no`},
		{&adapter.StartError{Program: "pt", Stage: "handshake", Err: exit}, `start "pt": handshake: transport program ended: <nil>`},
		{&adapter.MethodError{Transport: "obfs4", Message: bare, Err: adapter.ErrRefused}, `transport "obfs4": refused by the transport program`},
		{&adapter.DialError{Transport: "obfs4", Stage: adapter.StageRequest, Err: adapter.ReplyGeneralFailure},
			"dial obfs4: request: socks reply 0x01: general failure"},
		{&builtin.DialError{Transport: "obfs4", Stage: builtin.StageConnect, Err: refused}, "obfs4: connect: dial: connect: connection refused"},
		{&builtin.DialError{Transport: "webtunnel", Stage: builtin.StageConnect, Err: noHost}, "webtunnel: connect: dial: name look-up: no such host"},
		{&builtin.DialError{Transport: "meek_lite", Stage: builtin.StageHandshake, Err: fmt.Errorf("%w (%v)", context.DeadlineExceeded, noHost)},
			"meek_lite: handshake: context deadline exceeded (dial tcp: lookup … on …: no such host)"},

		{refused, "dial: connect: connection refused"},
		{fmt.Errorf("direct: %w", refused), "direct: dial: connect: connection refused"},
		{noHost, "dial: name look-up: no such host"},
		{&net.DNSError{Err: "read udp " + addr + ":53: i/o timeout", Name: bare, IsTimeout: true}, "name look-up: timeout"},
		{&net.DNSError{Err: "server misbehaving", Name: bare, Server: addr}, "name look-up failed"},
		{errors.Join(refused, noHost), "dial: connect: connection refused\ndial: name look-up: no such host"},
		{fmt.Errorf("both %s: %w, and %w", bare+".example", noHost, io.EOF), "both …: dial: name look-up: no such host, and EOF"},
		{&url.Error{Op: "Get", URL: "https://" + host, Err: io.ErrUnexpectedEOF}, "Get: unexpected EOF"},
		{urlErr, "parse: invalid URL escape …"},
		{splitErr, "missing port in address"},
		{parseErr, "……): unexpected character (at …)"},
		{&net.ParseError{Type: "IP address", Text: bare}, "invalid IP address"},

		{x509.HostnameError{Certificate: certificate, Host: bare}, "the certificate is for another name"},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: certificate, Host: bare}},
			"tls: failed to verify certificate: the certificate is for another name"},
		{x509.UnknownAuthorityError{Cert: certificate}, "the certificate is of an unknown authority"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.Expired, Detail: bare}, "the certificate has expired or is not yet valid"},
		{x509.CertificateInvalidError{Cert: certificate, Reason: x509.CANotAuthorizedForThisName, Detail: bare}, "the certificate is not valid"},

		{errors.New("error dialing " + addr + ":443: no route"), "error dialing …: no route"},
		{errors.New("[2001:db8::1]:443 is down, " + host + ", too."), "[… is down, …, too."},
		{errors.New("no route to 2600::, nor to fe80::"), "no route to …::, nor to …::"},
		{errors.New("address " + `"hidden" has no port`), "address … has no port"},
		{errors.New("malformed iat-mode 'hidden one'"), "malformed iat-mode …"},
		{errors.New("it said `hidden"), "it said …"},
		{errors.New("cert=AbCdEf+/0123 iat-mode=0 key 0123456789ABCDEF0123456789ABCDEF01234567"), "… … key …"},
		{errors.New("AbCdEfGhIjKlMnOpQrStUvWxYz is no key"), "… is no key"},
		{errors.New("user@hidden, hidden/path, hidden:1"), "…, …, …"},
		{errors.New("hídden"), "…"},
		{errors.New("no answer for 1.5s: 2 of 3 tries, x509 and socks5 can't help"), "no answer for 1.5s: 2 of 3 tries, x509 and socks5 can't help"},

		{&os.PathError{Op: "open", Path: "/var/lib/ptgate/obfs4_state.json", Err: syscall.EACCES}, "open /var/lib/ptgate/obfs4_state.json: permission denied"},
		{&exec.Error{Name: "obfs4proxy", Err: exec.ErrNotFound}, `exec: "obfs4proxy": executable file not found in …`},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), "read: i/o timeout"},
		{io.EOF, "EOF"},
		{nil, ""},
	} {
		if got := redact.Text(tt.err, true); got != tt.want {
			t.Errorf("%v:\n got %q\nwant %q", tt.err, got, tt.want)
		}
		if got := redact.Text(tt.err, false); tt.err != nil && got != tt.err.Error() {
			t.Errorf("not private: %q, want %q", got, tt.err)
		}
	}
}

// FuzzText: no address, host name or quoted text gets through, wherever it stands
// (a quoted one not beside other quotes).
func FuzzText(f *testing.F) {
	f.Add("dial tcp %: refused")
	f.Add("%")
	f.Add("x(%).")
	f.Add(`"%`)
	f.Fuzz(func(t *testing.T, format string) {
		for _, secret := range []string{"192.0.2.77", "hidden.example", "2001:db8::1", "https://hidden/", `"hidden"`} {
			text := strings.ReplaceAll(format, "%", secret)
			core := strings.Trim(secret, `"`)
			if strings.Contains(format, core) || !strings.Contains(text, core) || core != secret && strings.ContainsAny(format, "\"'`") {
				continue
			}
			if got := redact.Text(errors.New(text), true); strings.Contains(got, core) {
				t.Errorf("%q: %q", text, got)
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
	// webtunnel: connect: name look-up: no such host
}
