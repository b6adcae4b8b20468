package gateway_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
)

// A gateway runs from New to the end of its first context.
func Example() {
	dir, err := os.MkdirTemp("", "ptgate")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "ptgate.toml")
	text := fmt.Sprintf("state_dir = %q\n", filepath.Join(dir, "state")) + `
[listen]
socks5 = "127.0.0.1:0"
[[route]]
to  = "*"
via = "direct"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	cfg, problems := config.Load(file)
	if cfg == nil {
		fmt.Println(problems)
		return
	}

	g := gateway.New(cfg, "/usr/bin/ptgate", slog.New(slog.DiscardHandler))
	stop, endStop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(stop, context.Background()) }()
	<-g.Ready()
	fmt.Println(g.Status().State, "with", len(g.Addresses(inbound.SOCKS5)), "SOCKS5 listener")

	if err := g.Reload(cfg); err != nil { // the same again
		fmt.Println(err)
	}
	endStop()
	fmt.Println("ended:", <-done)
	fmt.Println(g.Reload(cfg))
	// Output:
	// running with 1 SOCKS5 listener
	// ended: <nil>
	// stopping
}
