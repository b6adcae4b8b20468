package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ptgate/adapter/durable"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/exit"
	"ptgate/routes"
)

// exitUsers gives the users of an exit. Nil: nobody is asked.
func exitUsers(e *config.Exit) map[string]exit.User {
	if !e.AsksUsers() {
		return nil
	}
	all := map[string]exit.User{}
	for name, password := range e.Users {
		all[name] = exit.User{Password: password}
	}
	for _, u := range e.FileUsers {
		x := exit.User{Password: u.Secret, Expires: u.Expires, Rate: u.Rate, Streams: u.Streams, Quota: u.Quota}
		if len(u.Allow) > 0 {
			var b routes.Builder
			for _, p := range u.Allow {
				_, _ = b.Add(0, p) // it fails for zero patterns and for billions only
			}
			x.Allow = b.Table()
		}
		all[u.Name] = x
	}
	return all
}

// ReadUsers reads the users_file of the running configuration again, and tells so. If file is
// not empty and another one than that, it does nothing. Streams of users who are gone end at
// once. With an error nothing changes. It does not wait for a reload that is under way.
func (g *Gateway) ReadUsers(file string) (read bool, err error) {
	g.users.Lock()
	defer g.users.Unlock()
	cfg := g.view.Load().cfg
	switch {
	case file != "" && !sameFile(file, cfg.Exit.UsersFile):
		return false, nil
	case cfg.Exit.UsersFile == "":
		return false, errors.New("the configuration that runs has no users_file yet")
	}
	return true, g.readUsers(cfg)
}

// sameFile tells whether two absolute paths are of one file.
func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return a == b || errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// readUsers reads the users_file of cfg, if it has one. The caller holds users.
func (g *Gateway) readUsers(cfg *config.Config) error {
	all, problems := cfg.ReadUsers()
	if config.HasError(problems) {
		var text []string
		for _, p := range problems {
			text = append(text, p.String())
		}
		return errors.New(strings.Join(text, "\n"))
	}
	e := cfg.Exit
	e.FileUsers = all
	g.exit.SetUsers(exitUsers(&e))
	return nil
}

// swap makes next the running view. Its users are read anew: since its configuration was
// read, somebody may have been revoked.
func (g *Gateway) swap(next *view) {
	g.users.Lock()
	defer g.users.Unlock()
	if old := g.view.Load(); len(next.servers) > 0 && next.cfg.Exit.AsksUsers() && !old.cfg.Exit.AsksUsers() {
		g.log.Warn("from now on every client needs a user: the others are turned away, and what they had open ends. `ptgate invite NAME` makes one")
	}
	g.view.Store(next)
	if next.cfg.Exit.UsersFile == "" || g.readUsers(next.cfg) != nil {
		g.exit.SetUsers(exitUsers(&next.cfg.Exit))
	}
}

// Usage tells what each user of the exit has used.
func (g *Gateway) Usage() map[string]exit.Usage { return g.exit.Usage() }

// usageEvery is how often what users have used is noted. A crash loses as much.
const usageEvery = time.Minute

// usagePath is the file in the state directory with what the users of a configuration file
// have used. It is named as the control socket is.
func usagePath(stateDir, config string) string {
	return filepath.Join(stateDir, "usage-"+control.ID(config)+".json")
}

// readUsage reads that file. What can't be read is none.
func readUsage(stateDir, config string) map[string]exit.Usage {
	var all map[string]exit.Usage
	b, err := durable.ReadFile(usagePath(stateDir, config))
	if err != nil || json.Unmarshal(b, &all) != nil {
		return nil
	}
	return all
}

// NotedUsage tells what the users of cfg have used, as a ptgate that ran it has noted.
func NotedUsage(cfg *config.Config) map[string]exit.Usage {
	where, _ := config.Locate(cfg.Path) // it was read a moment ago
	for _, dir := range where.StateDirs {
		if all := readUsage(dir, cfg.Path); all != nil {
			return all
		}
	}
	return nil
}

// noteUsage writes now and then what users have used, and once more when ctx ends.
func (g *Gateway) noteUsage(ctx context.Context) {
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	var noted map[string]exit.Usage
	for stop := false; !stop; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			stop = true
		}
		all := g.exit.Usage()
		if maps.Equal(all, noted) || len(all) == 0 && noted == nil {
			continue
		}
		cfg := g.view.Load().cfg
		b, err := json.MarshalIndent(all, "", "\t")
		if err == nil {
			err = durable.WriteFile(usagePath(cfg.StateDir, cfg.Path), b, 0o600)
		}
		if err != nil {
			g.log.Warn("what users have used could not be noted", "file", filepath.Base(usagePath(cfg.StateDir, cfg.Path)), "error", err)
			continue
		}
		noted = all
	}
}
