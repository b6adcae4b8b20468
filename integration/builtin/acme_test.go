//go:build integration

package builtin_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/builtin/website"
	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

const acmeName = "www.example.com"

// freePort is one of loopback that nobody uses.
func freePort(t *testing.T) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(ports.Free(t))
	return port
}

// startDNS is a name server that knows one name: it is this machine. Pebble asks over TCP.
func startDNS(t *testing.T, known string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return harness.Serve(t, ln, func(c net.Conn) { _ = answerDNS(c, known) })
}

// answerDNS answers one question (RFC 1035 section 4.2.2).
func answerDNS(c net.Conn, known string) error {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return err
	}
	text := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, text); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(text); err != nil {
		return err
	}
	m.Header.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		switch {
		case q.Name.String() != known+".":
			m.Header.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
				Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
		}
	}
	text, err := m.AppendPack(make([]byte, 2, 514))
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint16(text, uint16(len(text)-2))
	_, err = c.Write(text)
	return err
}

// startPebble runs an authority that looks at these ports of the name. It returns the URL of
// its directory, the certificate that signs its own, and the one that signs others, which is
// also in roots.pem beside ca.
func startPebble(t *testing.T, tlsPort, httpPort, dns string) (directory, ca string, roots *x509.CertPool, stop func()) {
	t.Helper()
	return startPebbleFor(t, 90*24*time.Hour, tlsPort, httpPort, dns)
}

// startPebbleFor is startPebble for certificates that are good for so long.
func startPebbleFor(t *testing.T, validity time.Duration, tlsPort, httpPort, dns string) (directory, ca string, roots *x509.CertPool, stop func()) {
	t.Helper()
	dir := t.TempDir()
	_, der, key := harness.Certificate(t, "localhost", "127.0.0.1")
	put := func(name string, b []byte) string { return harness.Write(t, dir, name, string(b)) }
	ca = put("ca.pem", der)
	listen, manage := freePort(t), freePort(t)
	conf, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + listen, "managementListenAddress": "127.0.0.1:" + manage,
		"certificate": ca, "privateKey": put("key.pem", key), "httpPort": json.Number(httpPort), "tlsPort": json.Number(tlsPort),
		"retryAfter": map[string]int{"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
		"profiles": map[string]any{"default": map[string]any{"description": "the only one", "validityPeriod": int(validity.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(realpt.Pebble(t), "-config", put("pebble.json", conf), "-dnsserver", dns)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	pebble := harness.Start(t, "pebble", cmd, harness.NewTranscript(t, "pebble"))
	stop = func() {
		pebble.Signal(syscall.SIGKILL)
		<-pebble.Exited
	}
	t.Cleanup(stop)
	pebble.Await("ACME directory available")
	own := x509.NewCertPool()
	own.AppendCertsFromPEM(der)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own, ServerName: "localhost"}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	roots = x509.NewCertPool()
	directory = "https://localhost:" + listen + "/dir"
	// The line above is printed before the ports are open.
	harness.Listening(t, "127.0.0.1:"+listen)
	harness.Listening(t, "127.0.0.1:"+manage)
	answer, err := web.Get("https://127.0.0.1:" + manage + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	root, err := io.ReadAll(answer.Body)
	if err != nil || !roots.AppendCertsFromPEM(root) {
		t.Fatalf("pebble's root: %q, %v", root, err)
	}
	put("roots.pem", root)
	return directory, ca, roots, stop
}

// acmeServer is webtunnel with a certificate of the authority.
func acmeServer(t *testing.T, state, port string, site website.Config) (*builtin.Listener, *harness.Transcript) {
	t.Helper()
	log := new(harness.Transcript)
	l, err := builtin.Listen(builtin.ServerConfig{Transport: "webtunnel", Bind: "127.0.0.1:" + port, StateDir: state, Site: &site,
		Options: adapter.Args{{Key: "url", Value: "https://" + acmeName + "/secret"}}, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, log
}

// shown is the certificate that a browser gets, and takes for good.
func shown(t *testing.T, l *builtin.Listener, roots *x509.CertPool, protocols ...string) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: acmeName, RootCAs: roots, NextProtos: protocols})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// A certificate comes from a real authority, by either way, is kept, and is there at once
// after a restart, also where the authority can't be reached.
func TestACME(t *testing.T) {
	dns := startDNS(t, acmeName)
	for _, way := range []string{"tls-alpn-01", "http-01"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			port, looks, plain := freePort(t), "1", freePort(t)
			site := website.Config{Name: acmeName, Email: "admin@example.com", HTTP: "127.0.0.1:" + plain}
			if way == "tls-alpn-01" {
				looks, site.HTTP = port, ""
			}
			directory, ca, roots, stop := startPebble(t, looks, plain, dns)
			site.Directory, site.CAFile = directory, ca
			state := t.TempDir()
			l, log := acmeServer(t, state, port, site)
			log.Wait(t, "the authority is asked for a certificate")
			log.Wait(t, "there is a new certificate")
			first := shown(t, l, roots)
			// Nobody sees that it comes from ACME.
			if c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: acmeName, RootCAs: roots, NextProtos: []string{"acme-tls/1"}}); err == nil {
				c.Close()
				t.Error("the server speaks acme-tls/1 with everybody")
			}
			if site.HTTP != "" {
				checkPlain(t, site.HTTP)
			}
			l.Close()
			stop()

			files := 0
			if err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				files++
				if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
				return nil
			}); err != nil || files != 2 {
				t.Errorf("%d files, %v", files, err)
			}
			l, log = acmeServer(t, state, port, site)
			if again := shown(t, l, roots); again.SerialNumber.Cmp(first.SerialNumber) != 0 {
				t.Error("after a restart the certificate is another one")
			}
			if log.String() != "" {
				t.Error(log)
			}
		})
	}
}

// A certificate is renewed while the server runs, with the same account. A connection with
// the old one goes on.
func TestACMERenews(t *testing.T) {
	port := freePort(t)
	directory, ca, roots, _ := startPebbleFor(t, 18*time.Second, port, "1", startDNS(t, acmeName))
	state := t.TempDir()
	l, log := acmeServer(t, state, port, website.Config{Name: acmeName, Directory: directory, CAFile: ca})
	const news = "there is a new certificate"
	log.Wait(t, news)
	account := func() string {
		text, err := os.ReadFile(filepath.Join(state, "acme", "account.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	key := account()
	old, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: acmeName, RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	log.Wait(t, "(?s)"+news+".*"+news)
	if fresh := shown(t, l, roots); fresh.SerialNumber.Cmp(old.ConnectionState().PeerCertificates[0].SerialNumber) == 0 {
		t.Error("the old certificate is shown")
	}
	if account() != key {
		t.Error("the account is another one")
	}
	fmt.Fprint(old, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if answer, err := http.ReadResponse(bufio.NewReader(old), nil); err != nil || answer.StatusCode != http.StatusNotFound {
		t.Errorf("over the old connection: %v, %v", answer, err)
	}
}

// checkPlain looks at the port without TLS.
func checkPlain(t *testing.T, addr string) {
	t.Helper()
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, path := range []string{"/page?a=b", "/.well-known/acme-challenge/x"} {
		answer, err := web.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if to := answer.Header.Get("Location"); answer.StatusCode != http.StatusMovedPermanently || to != "https://127.0.0.1"+path {
			t.Errorf("%s: %d, %q", path, answer.StatusCode, to)
		}
	}
}

// What an authority says is told in our words, without the name and addresses in its own.
// Until there is a certificate, the port is open, and the end waits for nothing.
func TestACMEFails(t *testing.T) {
	directory, ca, _, _ := startPebble(t, "1", "1", startDNS(t, "other.example.com"))
	l, log := acmeServer(t, t.TempDir(), "0", website.Config{Name: acmeName, Directory: directory, CAFile: ca})
	log.Wait(t, "the authority gave no certificate")
	if text := log.String(); !strings.Contains(text, "the authority can't look at the name") || strings.Contains(text, acmeName) || strings.Contains(text, "127.0.0.1") {
		t.Error(text)
	}
	if c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: acmeName}); err == nil {
		c.Close()
		t.Error("there is a certificate")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
