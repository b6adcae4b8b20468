package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"ptgate/gateway/carrier"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
	"ptgate/gateway/serve"
)

// HasNotes tells whether a ptgate has served with this state directory.
func HasNotes(stateDir string) bool {
	_, err := os.Stat(filepath.Join(stateDir, announcedFile))
	return err == nil
}

// Announce tells what each [[serve]] of cfg announces to clients, in the file's
// order: from the notes of a running ptgate, or, where it has never run, by
// starting the transport for a moment on a loopback port with its own keys.
func Announce(ctx context.Context, cfg *config.Config, exe string) ([]serve.Announced, error) {
	var noted []serve.Announced
	if b, err := os.ReadFile(filepath.Join(cfg.StateDir, announcedFile)); err == nil {
		if err := json.Unmarshal(b, &noted); err != nil {
			return nil, fmt.Errorf("%s: %w", announcedFile, err)
		}
	}
	var all []serve.Announced
	for _, w := range serveStates(cfg) {
		i := slices.IndexFunc(noted, func(a serve.Announced) bool {
			return a.Key == serve.Key(w.cfg, w.state)
		})
		if i >= 0 {
			all = append(all, noted[i])
			continue
		}
		trial := *w.cfg
		trial.Bind = netip.MustParseAddrPort("127.0.0.1:0")
		limits := cfg.Limits
		s, err := serve.Start(ctx, &trial, w.state, serve.Deps{
			Exe: exe, Limit: inbound.NewLimiter(1), Logger: slog.New(slog.DiscardHandler),
			Limits: func() *config.Limits { return &limits }, Windows: new(carrier.Windows),
		})
		if err != nil {
			return nil, err
		}
		a := s.Announced()
		s.Stop(ctx, 0)
		a.Bind, a.Address = w.cfg.Bind.String(), w.cfg.Bind.String()
		all = append(all, a)
	}
	return all, nil
}
