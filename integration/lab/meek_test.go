//go:build integration

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pt "gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/goptlib"
)

// meekPort is where the meek server listens in a server's box.
const meekPort = 8444

// meekRole is the variable that makes this program a meek server. Its value is the directory
// with the certificate.
const meekRole = "PTGATE_LAB_MEEK"

// An authority signs the certificates of the web servers here.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// sign writes a certificate for a host, a name or an address, and its key to dir.
func (a *authority) sign(t testing.TB, host, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(crand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// trust makes the authority the only one that programs in the box trust. `ip netns exec`
// puts what is below /etc/netns over /etc.
func (b *box) trust(t testing.TB, a *authority) {
	t.Helper()
	dir := filepath.Join("/etc/netns", b.ns, "ssl/certs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca-certificates.crt"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// meek makes the configurations for a meek server in the box, which this program is. There
// is no other one to be had. It gives what pair does.
func (b *box) meek(t testing.TB, addr netip.Addr, name string) (server, bridge string) {
	t.Helper()
	dir, err := os.MkdirTemp(b.dir, "meek-")
	if err != nil {
		t.Fatal(err)
	}
	b.authority = newAuthority(t)
	b.authority.sign(t, addr.String(), dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server = fmt.Sprintf("[[serve]]\ntransport = \"meek_lite\"\nbind = \"%s:%d\"\n"+
		"[pt.meek]\nexec = [%q]\ntransports = [\"meek_lite\"]\nenv = { %s = %q }\n"+
		"[exit]\nallow = [\"*\"]\ndeny = []\n[limits]\ndrain = \"10s\"\n", addr, meekPort, self, meekRole, dir)
	bridge = fmt.Sprintf("[bridge.%s]\ntransport = \"meek_lite\"\naddress = \"192.0.2.1:443\"\nargs = { url = \"https://%s:%d/\" }\n", name, addr, meekPort)
	return server, bridge
}

// runMeek is a server transport as meek-server is one: each session of polls is one
// connection to the parent. It ends with its standard input.
func runMeek(dir string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	info, err := pt.ServerSetup(nil)
	if err != nil {
		return err
	}
	ln, err := net.ListenTCP("tcp", info.Bindaddrs[0].Addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: &meekHandler{info: &info, sessions: map[string]*meekSession{}}, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	pt.Smethod(info.Bindaddrs[0].MethodName, ln.Addr())
	pt.SmethodsDone()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		s.Close()
	}()
	return s.ServeTLS(ln, "", "")
}

type meekHandler struct {
	info     *pt.ServerInfo
	mu       sync.Mutex
	sessions map[string]*meekSession
}

type meekSession struct {
	mu   sync.Mutex // of one poll at a time
	conn net.Conn
}

const (
	mostMeek = 64 << 10              // bytes of a poll and of its answer
	meekWait = 20 * time.Millisecond // how long an answer waits for its first byte
)

func (h *meekHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Session-Id")
	if r.Method != http.MethodPost || id == "" {
		fmt.Fprintln(w, "It works.")
		return
	}
	h.mu.Lock()
	s := h.sessions[id]
	if s == nil {
		s = new(meekSession)
		h.sessions[id] = s
	}
	h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, err := s.poll(h.info, r)
	if err != nil {
		http.Error(w, "the session has ended", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(answer)
}

// poll passes on what has come and takes what is there.
func (s *meekSession) poll(info *pt.ServerInfo, r *http.Request) ([]byte, error) {
	if s.conn == nil {
		c, err := pt.DialOr(info, r.RemoteAddr, info.Bindaddrs[0].MethodName)
		if err != nil {
			return nil, err
		}
		s.conn = c
	}
	if _, err := io.Copy(s.conn, io.LimitReader(r.Body, mostMeek)); err != nil {
		return nil, err
	}
	buf := make([]byte, mostMeek)
	s.conn.SetReadDeadline(time.Now().Add(meekWait))
	n := 0
	for n < len(buf) {
		k, err := s.conn.Read(buf[n:])
		n += k
		if e, ok := err.(net.Error); ok && e.Timeout() {
			break
		}
		if err != nil && n == 0 {
			s.conn.Close()
			return nil, err
		}
		if err != nil {
			break
		}
	}
	return buf[:n], nil
}
