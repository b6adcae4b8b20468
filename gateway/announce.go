package gateway

import (
	"context"
	"encoding/json"
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

// Noted tells what each [[serve]] of cfg announces to clients, in the file's order,
// by the notes of a ptgate that has run it with the state directory stateDir; ok is
// false where there are none for one of them.
func Noted(cfg *config.Config, stateDir string) (all []serve.Announced, ok bool) {
	b, err := os.ReadFile(filepath.Join(stateDir, announcedFile))
	if err != nil {
		return nil, false
	}
	var noted []serve.Announced
	if err := json.Unmarshal(b, &noted); err != nil {
		return nil, false
	}
	where := *cfg
	where.StateDir = stateDir
	for _, w := range serveStates(&where) {
		i := slices.IndexFunc(noted, func(a serve.Announced) bool {
			return a.Key == serve.Key(w.cfg, w.state)
		})
		if i < 0 {
			return nil, false
		}
		all = append(all, noted[i])
	}
	return all, true
}

// Announce tells the same where no ptgate has run cfg yet, by starting each
// transport for a moment on a loopback port with its own keys, which it makes.
func Announce(ctx context.Context, cfg *config.Config, exe string) (all []serve.Announced, err error) {
	for _, w := range serveStates(cfg) {
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
