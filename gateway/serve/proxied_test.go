package serve

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"ptgate/adapter"
	"ptgate/adapter/builtin/website"
	"ptgate/gateway/config"
	"ptgate/integration/ports"
)

// knock asks a webtunnel server for a tunnel as a web server in front does, with a header of
// the PROXY protocol before that. It returns what comes through the tunnel, or an error.
func knock(t *testing.T, addr netip.AddrPort, header string) (net.Conn, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "%sGET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", header)
	return c, upgraded(c)
}

// upgraded reads the answer to a request for a tunnel, and no byte more.
func upgraded(c io.Reader) error {
	head := make([]byte, 0, 200)
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			return err
		}
		head = append(head, b[0])
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
		return fmt.Errorf("%q", head)
	}
	return nil
}

// freeAddr is an address of loopback that nobody uses.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(ports.Free(t))
}

// A client behind a proxy that says who it is meets deny and the limits of a client as
// itself, and the fixed service hears of it, whether the transport runs in this process or
// in a child.
func TestProxyProtocol(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		for _, version := range []int{0, 1, 2} {
			service, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			bind := freeAddr(t)
			f := start(t, &config.Serve{
				Transport: "webtunnel", Bind: bind, PT: &config.PT{Name: "webtunnel", Isolate: isolate},
				Options:   adapter.Args{{Key: "url", Value: "https://example.com/x"}},
				Deny:      []netip.Prefix{netip.MustParsePrefix("203.0.113.66/32")},
				ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, ProxyWait: 10 * time.Second,
				Forward: service.Addr().String(), ProxyProtocol: version,
			}, func(f *far) { f.limits.ClientStreams = 1 })
			for _, tt := range []struct {
				source string
				served bool
			}{
				{"203.0.113.1 192.0.2.1 1001 443", true},
				{"203.0.113.2 192.0.2.1 1002 443", true},
				{"203.0.113.2 192.0.2.1 1003 443", false}, // it has its one stream
				{"203.0.113.66 192.0.2.1 1004 443", false},
			} {
				c, err := knock(t, bind, "PROXY TCP4 "+tt.source+"\r\n")
				if !tt.served {
					// Over the limit, the connection ends after the tunnel stands.
					if err == nil {
						_, err = c.Read(make([]byte, 1))
					}
					if err == nil {
						t.Errorf("isolate %v, version %d: %s is served", isolate, version, tt.source)
					}
					continue
				}
				if err != nil {
					t.Fatalf("isolate %v, version %d, %s: %v", isolate, version, tt.source, err)
				}
				io.WriteString(c, "hello")
				at, err := service.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer at.Close()
				at.SetDeadline(time.Now().Add(time.Minute))
				in := bufio.NewReader(at)
				fields := strings.Fields(tt.source)
				want := fields[0] + ":" + fields[2]
				if version != 0 {
					header, err := proxyproto.Read(in)
					if err != nil || int(header.Version) != version || header.SourceAddr.String() != want {
						t.Errorf("isolate %v, version %d: %+v, %v, want %s", isolate, version, header, err, want)
					}
				}
				got := make([]byte, 5)
				if _, err := io.ReadFull(in, got); err != nil || string(got) != "hello" {
					t.Errorf("isolate %v, version %d: %q, %v", isolate, version, got, err)
				}
			}
			f.Stop(context.Background(), 0)
		}
	}
}

// A socket for both families has no IPv4 address of its own. An IPv4 client behind a proxy
// is told of as IPv4 all the same: what reads the header compares addresses with its lists.
func TestProxyProtocolFamilies(t *testing.T) {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	bind := netip.AddrPortFrom(netip.IPv6Loopback(), freeAddr(t).Port())
	start(t, &config.Serve{
		Transport: "webtunnel", Bind: bind, PT: &config.PT{Name: "webtunnel"}, Options: adapter.Args{{Key: "url", Value: "https://example.com/x"}},
		ProxyFrom: []netip.Prefix{netip.MustParsePrefix("::1/128")}, ProxyWait: 10 * time.Second, Forward: service.Addr().String(), ProxyProtocol: 1,
	}, nil)
	for from, want := range map[string]string{
		"TCP4 203.0.113.1 192.0.2.1 1001 443":               fmt.Sprintf("PROXY TCP4 203.0.113.1 0.0.0.0 1001 %d\r\n", bind.Port()),
		"TCP6 2001:db8::1 2001:db8::2 1001 443":             fmt.Sprintf("PROXY TCP6 2001:db8::1 ::1 1001 %d\r\n", bind.Port()),
		"TCP6 ::ffff:203.0.113.2 ::ffff:192.0.2.1 1001 443": fmt.Sprintf("PROXY TCP4 203.0.113.2 0.0.0.0 1001 %d\r\n", bind.Port()),
	} {
		if _, err := knock(t, bind, "PROXY "+from+"\r\n"); err != nil {
			t.Fatal(from, err)
		}
		at, err := service.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
		at.SetDeadline(time.Now().Add(time.Minute))
		if line, err := bufio.NewReader(at).ReadString('\n'); line != want {
			t.Errorf("%s: %q, %v, want %q", from, line, err, want)
		}
	}
}

// A client whose address is not known is told of as that.
func TestProxyProtocolNobody(t *testing.T) {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	bind := freeAddr(t)
	start(t, &config.Serve{
		Transport: "webtunnel", Bind: bind, PT: &config.PT{Name: "webtunnel"}, Options: adapter.Args{{Key: "url", Value: "https://example.com/x"}},
		TrustedHops: 1, Forward: service.Addr().String(), ProxyProtocol: 1,
	}, nil)
	if _, err := knock(t, bind, ""); err != nil {
		t.Fatal(err)
	}
	at, err := service.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	at.SetDeadline(time.Now().Add(time.Minute))
	if line, err := bufio.NewReader(at).ReadString('\n'); line != "PROXY UNKNOWN\r\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// A server that answers TLS itself does so in a child, too. A trial start does not.
func TestWebsite(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"example.com"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"cert.pem":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"key.pem":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}),
		"index.html": []byte("<title>Bees</title>"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, isolate := range []bool{false, true} {
		bind, plain := freeAddr(t), freeAddr(t)
		cfg := &config.Serve{
			Transport: "webtunnel", Bind: bind, PT: &config.PT{Name: "webtunnel", Isolate: isolate},
			Options:        adapter.Args{{Key: "url", Value: "https://example.com/x"}},
			Site:           &website.Config{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), Decoy: dir, HTTP: plain.String()},
			TrustedProxies: []netip.Prefix{},
		}
		f := start(t, cfg, nil)
		again := *cfg
		again.Bind = netip.MustParseAddrPort("127.0.0.1:0")
		start(t, &again, func(f *far) { f.trial = true }).Stop(context.Background(), 0)
		if a := f.Announced(); len(a.Args) != 2 || a.Args[0].Key != "url" || a.Args[1].Key != "ver" {
			t.Errorf("isolate %v: clients are told %v", isolate, a.Args)
		}
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
		answer, err := web.Get("https://" + bind.String() + "/")
		if err != nil {
			t.Fatalf("isolate %v: %v", isolate, err)
		}
		page, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || string(page) != "<title>Bees</title>" {
			t.Errorf("isolate %v: %q, %v", isolate, page, err)
		}
		c, err := tls.Dial("tcp", bind.String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprint(c, "GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x05\x01\x00")
		got := make([]byte, 2)
		if err := upgraded(c); err != nil {
			t.Errorf("isolate %v: %v", isolate, err)
		} else if _, err := io.ReadFull(c, got); err != nil || string(got) != "\x05\x00" {
			t.Errorf("isolate %v: %q, %v", isolate, got, err)
		}
		c.Close()
		f.Stop(context.Background(), 0)
	}
}
