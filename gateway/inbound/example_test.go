package inbound_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/inbound"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// everything leads each request to one server, but for one name.
type everything struct{ addr string }

func (e everything) Dial(ctx context.Context, t routes.Target) (stream.Conn, error) {
	if t.Name == "blocked.example" {
		return nil, answer.Errorf(answer.Blocked, "no route")
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, err
	}
	return stream.From(c), nil
}

func move(ctx context.Context, client, upstream stream.Conn, early []byte) {
	relay.Run(ctx, client, upstream, relay.Options{Early: early})
}

// One Server serves both fronts; an unmodified HTTP client uses either as its proxy.
func Example() {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s", r.Host)
	}))
	defer site.Close()

	settings := &inbound.Settings{
		Dialer:    everything{site.Listener.Addr().String()},
		Handshake: 10 * time.Second,
		Dial:      75 * time.Second,
	}
	srv := inbound.New(inbound.Config{
		Settings: func() *inbound.Settings { return settings },
		Relay:    move,
		Limit:    inbound.NewLimiter(100),
		Book:     outcome.New(slog.New(slog.DiscardHandler)),
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for _, f := range []struct {
		front  inbound.Front
		scheme string
	}{{inbound.SOCKS5, "socks5"}, {inbound.HTTP, "http"}} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Println(err)
			return
		}
		done := make(chan error)
		go func() { done <- srv.Serve(ctx, ctx, ln, f.front) }()
		defer func() { stop(); fmt.Println("served:", <-done) }()

		transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: f.scheme, Host: ln.Addr().String()})}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		for _, name := range []string{"open.example", "blocked.example"} {
			resp, err := client.Get("http://" + name + "/")
			if err != nil {
				fmt.Println(f.front, name, "error")
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				body = []byte(resp.Header.Get("Proxy-Status"))
			}
			fmt.Println(f.front, resp.StatusCode, string(body))
		}
	}
	// Output:
	// socks5 200 hello from open.example
	// socks5 blocked.example error
	// http 200 hello from open.example
	// http 403 ptgate; error=destination_ip_prohibited
	// served: <nil>
	// served: <nil>
}
