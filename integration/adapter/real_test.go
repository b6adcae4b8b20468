//go:build integration

package adapter_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/adapter"
	"ptgate/integration/harness"
	"ptgate/integration/ports"
	"ptgate/integration/realpt"
)

// TestWebtunnel runs webtunnel's server behind nginx, which ends TLS, with
// lyrebird as the client, and in the clear without nginx.
func TestWebtunnel(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	const path = "/secret-path"
	backend := ports.Free(t)
	front := ports.Free(t)
	_, port, _ := net.SplitHostPort(front)
	site := "https://bridge.example:" + port + path

	infos := make(chan adapter.ClientInfo, 100)
	server := adapter.NewExtServer(adapter.ExtServerConfig{
		Config: adapter.Config{Exec: []string{realpt.WebtunnelServer(t)}},
		Handler: func(ctx context.Context, c net.Conn, info adapter.ClientInfo) {
			infos <- info
			echoHandler(ctx, c, info)
		},
	})
	if err := server.AddTransport("webtunnel", backend, adapter.Args{{Key: "url", Value: site}}); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stopped(t, server)
	announced, err := server.Method("webtunnel")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := announced.Args.Get("url"); got != site || announced.Addr == backend {
		t.Errorf("announced %+v, want the url and a placeholder", announced)
	}

	dir := t.TempDir()
	pair, cert, key := harness.Certificate(t, "bridge.example")
	certFile, keyFile := harness.Write(t, dir, "cert.pem", string(cert)), harness.Write(t, dir, "key.pem", string(key))
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `
daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events { }
http {
	access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	server {
		listen %[2]s ssl; ssl_certificate %[3]s; ssl_certificate_key %[4]s;
		location = %[5]s {
			proxy_pass http://%[6]s; proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; proxy_set_header X-Forwarded-For 198.51.100.77;
		}
	}
}`, dir, front, certFile, keyFile, path, backend), 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Daemon(t, realpt.Program(t, "nginx"), "-p", dir, "-c", conf)
	harness.Listening(t, front)

	hash := sha256.Sum256(pair.Certificate[0])
	pin := base64.StdEncoding.EncodeToString(hash[:])
	tests := map[string]struct {
		program string
		args    adapter.Args
		client  netip.Addr
	}{
		"lyrebird by https": {
			realpt.Lyrebird(t),
			adapter.Args{{Key: "url", Value: site}, {Key: "addr", Value: front}, {Key: "cert", Value: pin}, {Key: "utls", Value: "none"}},
			netip.MustParseAddr("198.51.100.77"),
		},
		"lyrebird like a browser": {
			realpt.Lyrebird(t),
			adapter.Args{{Key: "url", Value: site}, {Key: "addr", Value: front}, {Key: "cert", Value: pin}, {Key: "utls", Value: "hellochrome_auto"}},
			netip.MustParseAddr("198.51.100.77"),
		},
		"lyrebird by http": {
			realpt.Lyrebird(t),
			adapter.Args{{Key: "url", Value: "http://" + backend + path}},
			netip.Addr{},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			client := startClient(t, []string{"webtunnel"}, tt.program)
			c, err := client.DialTransport(t.Context(), "webtunnel", announced.Addr, tt.args)
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c, 1<<20)
			if info := <-infos; info.Transport != "webtunnel" || tt.client.IsValid() && info.Addr.Addr() != tt.client {
				t.Errorf("client info %+v, want %v", info, tt.client)
			}
		})
	}
	t.Run("wrong pin", func(t *testing.T) {
		client := startClient(t, []string{"webtunnel"}, realpt.Lyrebird(t))
		args := adapter.Args{{Key: "url", Value: site}, {Key: "addr", Value: front}, {Key: "utls", Value: "none"},
			{Key: "cert", Value: base64.StdEncoding.EncodeToString(make([]byte, 32))}}
		c, err := client.DialTransport(t.Context(), "webtunnel", announced.Addr, args)
		if err == nil {
			c.Close()
		}
		if dial, ok := errors.AsType[*adapter.DialError](err); !ok || dial.Stage != adapter.StageRequest {
			t.Errorf("dial: %v", err)
		}
	})
	// webtunnel's own client starts and speaks SOCKS as it should, but dials
	// no loopback address: all that can be had of it here is its refusal.
	t.Run("webtunnel's own client", func(t *testing.T) {
		client := startClient(t, []string{"webtunnel"}, realpt.WebtunnelClient(t))
		c, err := client.DialTransport(t.Context(), "webtunnel", announced.Addr, adapter.Args{{Key: "url", Value: "http://" + backend + path}})
		if err == nil {
			c.Close()
		}
		if reply, ok := errors.AsType[adapter.Reply](err); !ok || reply != adapter.ReplyGeneralFailure {
			t.Errorf("dial: %v", err)
		}
	})
}

// TestRefusedTransports has real programs that cannot do what is asked.
func TestRefusedTransports(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	for name, program := range map[string]string{"obfs4proxy": realpt.Program(t, "obfs4proxy"), "lyrebird": realpt.Lyrebird(t)} {
		t.Run(name, func(t *testing.T) {
			client := startClient(t, []string{"obfs4", "nonsense"}, program)
			if _, err := client.Method("nonsense"); !errors.Is(err, adapter.ErrRefused) && !errors.Is(err, adapter.ErrNotAnnounced) {
				t.Errorf("method: %v", err)
			}
			if _, err := client.Method("obfs4"); err != nil {
				t.Errorf("method: %v", err)
			}
			none := adapter.NewClient(adapter.ClientConfig{Config: adapter.Config{Exec: []string{program}}, Transports: []string{"nonsense"}})
			if err := none.Start(t.Context()); err == nil {
				stopped(t, none)
				t.Error("started with no transport")
			} else if failure, ok := errors.AsType[*adapter.StartError](err); !ok || failure.Stage != adapter.StageMethods {
				t.Errorf("start: %v", err)
			}
			// Nobody listens there: the program says so in its way.
			gone := ports.Free(t)
			args := adapter.Args{{Key: "cert", Value: strings.Repeat("A", 70)}, {Key: "iat-mode", Value: "0"}}
			_, err := client.DialTransport(t.Context(), "obfs4", gone, args)
			if _, ok := errors.AsType[*adapter.DialError](err); !ok {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestServerForward leads obfs4 to a fixed service.
func TestServerForward(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	obfs4proxy := realpt.Program(t, "obfs4proxy")
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	harness.Serve(t, service, func(c net.Conn) { echoHandler(t.Context(), c, adapter.ClientInfo{}) })
	server := adapter.NewServer(adapter.ServerConfig{Config: adapter.Config{Exec: []string{obfs4proxy}}, Forward: service.Addr().String()})
	if err := errors.Join(server.AddTransport("obfs4", "127.0.0.1:0", adapter.Args{{Key: "iat-mode", Value: "0"}}), server.AddTransport("obfs3", "", nil)); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stopped(t, server)
	client := startClient(t, []string{"obfs4", "obfs3"}, obfs4proxy)
	for _, transport := range []string{"obfs4", "obfs3"} {
		method, err := server.Method(transport)
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.DialTransport(t.Context(), transport, method.Addr, method.Args)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, 1<<20)
	}
	// Drained, the child lets a live connection finish, then ends by itself.
	method, err := server.Method("obfs4")
	if err != nil {
		t.Fatal(err)
	}
	live, err := client.DialTransport(t.Context(), "obfs4", method.Addr, method.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Drain(); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, live, 1<<20)
	if err := client.Wait(); err != nil {
		t.Errorf("wait: %v", err)
	}
}

// TestUpstreamProxy holds that the child dials through the proxy, and how a
// proxy that refuses looks like.
func TestUpstreamProxy(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	obfs4proxy := realpt.Program(t, "obfs4proxy")
	server := adapter.NewExtServer(adapter.ExtServerConfig{Config: adapter.Config{Exec: []string{obfs4proxy}}, Handler: echoHandler})
	if err := server.AddTransport("obfs4", "", nil); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stopped(t, server)
	method, err := server.Method("obfs4")
	if err != nil {
		t.Fatal(err)
	}

	var used atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		used.Add(1)
		far, err := net.Dial("tcp", r.Host)
		if err != nil || r.Method != http.MethodConnect {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		defer far.Close()
		w.WriteHeader(http.StatusOK)
		near, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(far, buffered)
			far.Close()
		})
		io.Copy(near, far)
		near.Close()
		wg.Wait()
	})}
	var wg sync.WaitGroup
	wg.Go(func() { proxy.Serve(listener) })
	defer wg.Wait()
	defer proxy.Close()

	client := adapter.NewClient(adapter.ClientConfig{
		Config: adapter.Config{Exec: []string{obfs4proxy}}, Transports: []string{"obfs4"},
		Proxy: &url.URL{Scheme: "http", Host: listener.Addr().String()},
	})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stopped(t, client)
	c, err := client.DialTransport(t.Context(), "obfs4", method.Addr, method.Args)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1<<20)
	if used.Load() != 1 {
		t.Errorf("proxy used %d times", used.Load())
	}
	// webtunnel's client knows no upstream proxy and must not come up silently
	// without it.
	ignorant := adapter.NewClient(adapter.ClientConfig{
		Config: adapter.Config{Exec: []string{realpt.WebtunnelClient(t)}}, Transports: []string{"webtunnel"},
		Proxy: &url.URL{Scheme: "http", Host: listener.Addr().String()},
	})
	if err := ignorant.Start(t.Context()); !errors.Is(err, adapter.ErrProxy) && !errors.Is(err, adapter.ErrProxyUnconfirmed) {
		t.Errorf("start: %v, want it stopped for want of the proxy", err)
	}
}

// TestSnowflake runs a whole snowflake world on this machine: broker, proxy,
// server and client.
func TestSnowflake(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	server := adapter.NewExtServer(adapter.ExtServerConfig{
		Config:  adapter.Config{Exec: []string{realpt.SnowflakeServer(t), "-disable-tls"}},
		Handler: echoHandler,
	})
	listen := ports.Free(t)
	if err := server.AddTransport("snowflake", listen, nil); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer stopped(t, server)

	dir := t.TempDir()
	bridges := filepath.Join(dir, "bridges.json")
	const print = "2B280B23E1107BB62ABFC40DDCC8824814F80A72"
	line, _ := json.Marshal(map[string]string{"displayName": "default", "webSocketAddress": "ws://" + listen + "/", "fingerprint": print})
	if err := os.WriteFile(bridges, append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := ports.Free(t)
	harness.Daemon(t, realpt.SnowflakeBroker(t), "-addr", broker, "-disable-tls", "-disable-geoip", "-bridge-list-path", bridges,
		"-allowed-relay-pattern", "^127.0.0.1$", "-default-relay-pattern", "^127.0.0.1$", "-unsafe-logging", "-metrics-log", filepath.Join(dir, "metrics"))
	harness.Listening(t, broker)
	harness.Daemon(t, realpt.SnowflakeProxy(t), "-broker", "http://"+broker+"/", "-relay", "ws://"+listen+"/", "-keep-local-addresses",
		"-allow-non-tls-relay", "-allow-proxying-to-private-addresses", "-allowed-relay-hostname-pattern", "^127.0.0.1$",
		"-stun", "stun:127.0.0.1:9", "-nat-probe-server", "http://127.0.0.1:9/", "-poll-interval", "2s", "-unsafe-logging", "-verbose")

	client := startClient(t, []string{"snowflake"}, realpt.SnowflakeClient(t), "-keep-local-addresses", "-unsafe-logging")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := adapter.Args{{Key: "url", Value: "http://" + broker + "/"}, {Key: "fingerprint", Value: print}, {Key: "ice", Value: "stun:127.0.0.1:9"}}
	c, err := client.DialTransport(ctx, "snowflake", "192.0.2.3:80", args)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 256<<10)
}
