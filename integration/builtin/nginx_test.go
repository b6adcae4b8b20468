//go:build integration

package builtin_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/integration/harness"
	"ptgate/integration/realpt"
)

// startNginx runs nginx on two IPv6 ports, one of them with TLS, with that location
// in both. It returns the ports, the file of the certificate and its hash.
func startNginx(t *testing.T, location string) (plain, secure, cert, hash string) {
	t.Helper()
	dir := t.TempDir()
	pair, certPEM, keyPEM := harness.Certificate(t, "::1")
	cert = harness.Write(t, dir, "cert.pem", string(certPEM))
	private := harness.Write(t, dir, "key.pem", string(keyPEM))
	sum := sha256.Sum256(pair.Certificate[0])

	plain, secure = freePort(t), freePort(t)
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	conf := harness.Write(t, dir, "nginx.conf", fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
pid %[1]s/pid;
error_log stderr notice;
events {}
http {
access_log off;
%[2]s
server {
listen [::1]:%[3]s;
listen [::1]:%[4]s ssl;
ssl_certificate %[5]s;
ssl_certificate_key %[6]s;
%[7]s
}
}
`, dir, temp.String(), plain, secure, cert, private, location))
	cmd := exec.Command(realpt.Program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", conf)
	nginx := harness.Start(t, "nginx", cmd, harness.NewTranscript(t, "nginx"))
	t.Cleanup(nginx.End)
	nginx.Await("start worker process ")
	return plain, secure, cert, base64.StdEncoding.EncodeToString(sum[:])
}

// A bridge behind a real nginx, at an IPv6 address: nginx takes the Host, a service
// that speaks first is heard, and nobody can say that he is somebody else.
func TestBehindNginx(t *testing.T) {
	asked := make(chan netip.AddrPort, 10)
	l, err := builtin.Listen(builtin.ServerConfig{Transport: "webtunnel", Bind: "127.0.0.1:0", TrustedHops: 1,
		Options: adapter.Args{{Key: "url", Value: "https://[::1]/secret"}},
		Admit:   func(a netip.AddrPort) bool { asked <- a; return true }})
	if err != nil {
		t.Fatal(err)
	}
	const greeting = "220 mail.example ready\r\n"
	harness.Serve(t, l, func(c builtin.Conn) {
		_, _ = io.WriteString(c, greeting)
		echo(c)
	})
	const location = `location %s {
	proxy_pass         http://%s;
	proxy_http_version 1.1;
	proxy_set_header   Upgrade $http_upgrade;
	proxy_set_header   Connection "keep-alive, upgrade";
	proxy_set_header   X-Forwarded-For $%s;
	proxy_buffering    off;
	proxy_read_timeout 1d;
}
`
	plain, secure, cert, hash := startNginx(t, fmt.Sprintf(location, "= /secret", l.Addr(), "remote_addr")+
		fmt.Sprintf(location, "= /appending", l.Addr(), "proxy_add_x_forwarded_for"))

	client, err := builtin.NewClient(builtin.ClientConfig{Transport: "webtunnel"})
	if err != nil {
		t.Fatal(err)
	}
	who := func() netip.Addr {
		select {
		case a := <-asked:
			return a.Addr()
		case <-time.After(time.Minute):
			return netip.Addr{}
		}
	}
	for _, args := range []adapter.Args{
		{{Key: "url", Value: "http://[::1]:" + plain + "/secret"}},
		{{Key: "url", Value: "https://[::1]:" + secure + "/secret"}, {Key: "cert", Value: hash}},
		{{Key: "url", Value: "https://[::1]:" + secure + "/secret"}, {Key: "cert", Value: hash}, {Key: "utls", Value: "none"}},
	} {
		c, err := client.Dial(t.Context(), builtin.Placeholder, args)
		if err != nil {
			t.Errorf("%v: %v", args, err)
			continue
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		got := make([]byte, len(greeting))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != greeting {
			t.Errorf("%v: got %q, %v", args, got, err)
		}
		roundTrip(t, c)
		if a := who(); a != netip.IPv6Loopback() {
			t.Errorf("%v: the client is %v", args, a)
		}
	}

	// An authority of the client's own, and a certificate for another name than the
	// one that is sent.
	child := adapter.NewClient(adapter.ClientConfig{Transports: []string{"webtunnel"},
		Config: adapter.Config{Exec: []string{os.Args[0]}, Env: []string{role + "=pt", "SSL_CERT_FILE=" + cert}}})
	if err := child.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Close() })
	for _, tt := range []struct {
		args adapter.Args
		fine bool
	}{
		{nil, true},
		{adapter.Args{{Key: "sni-imitation", Value: "other.example"}}, true},
		{adapter.Args{{Key: "servername", Value: "other.example"}, {Key: "cert-domain", Value: "::1"}}, true},
		{adapter.Args{{Key: "servername", Value: "other.example"}, {Key: "cert-domain", Value: "*"}}, true},
		{adapter.Args{{Key: "servername", Value: "other.example"}}, false},
		{adapter.Args{{Key: "cert-domain", Value: "other.example"}}, false},
	} {
		for _, hello := range []string{"none", "hellochrome_auto"} {
			args := append(adapter.Args{{Key: "url", Value: "https://[::1]:" + secure + "/secret"}, {Key: "utls", Value: hello}}, tt.args...)
			c, err := child.DialTransport(t.Context(), "webtunnel", builtin.Placeholder, args)
			if (err == nil) != tt.fine {
				t.Errorf("%v: %v", args, err)
			}
			if err == nil {
				_ = c.Close()
				_ = who()
			}
		}
	}

	for _, path := range []string{"/secret", "/appending"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://[::1]:"+plain+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Upgrade", "websocket")
		request.Header["X-Forwarded-For"] = []string{"203.0.113.5:4711", "a.name"}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if a := who(); a != netip.IPv6Loopback() || answer.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("%s: the client is %v, status %d", path, a, answer.StatusCode)
		}
	}

	// What asks for no tunnel gets nginx's own answer.
	answer, err := http.Get("http://[::1]:" + plain + "/secret")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "<center>nginx") || err != nil {
		t.Errorf("no tunnel: status %d, %q, %v", answer.StatusCode, body, err)
	}
}
