package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/inbound"
)

// dashC is how a command names the configuration at an absolute path: with -c, or not at all where it
// is the one that is found without.
func dashC(path string) string {
	if found, err := config.Find(""); err == nil {
		if found, err = filepath.Abs(found); err == nil && found == path {
			return ""
		}
	}
	return " -c " + path
}

// whatNext says what to do when all listeners and transports are up.
func whatNext(cfg *config.Config, addresses func(inbound.Front) []string) string {
	var steps []string
	for _, l := range []struct {
		front  inbound.Front
		scheme string
	}{{inbound.Mixed, "socks5h"}, {inbound.SOCKS5, "socks5h"}, {inbound.HTTP, "http"}} {
		all := addresses(l.front)
		i := slices.IndexFunc(all, func(a string) bool { return !strings.HasPrefix(a, config.UnixPrefix) })
		if i < 0 {
			continue
		}
		user := ""
		if len(cfg.Listen.Users) > 0 {
			user = "USER:PASSWORD@"
		}
		steps = append(steps, fmt.Sprintf("try it:  curl -x %s://%s%s https://example.com/", l.scheme, user, all[i]))
		break
	}
	switch {
	case len(cfg.Serve) == 0:
	case cfg.Exit.UsersFile != "":
		steps = append(steps, "invite somebody:  ptgate invite"+dashC(cfg.Path)+" NAME")
	default:
		steps = append(steps, "the lines for clients:  ptgate bridges"+dashC(cfg.Path))
	}
	return strings.Join(append(steps, "how it does:  ptgate status"+dashC(cfg.Path)), "; ")
}

// askTime is how long a ptgate that may run already has to answer.
const askTime = 2 * time.Second

// runsAlready is an error if a ptgate runs the configuration at path. One that is about to
// stop has given its ports back, or is about to.
func runsAlready(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	r, err := running(ctx, path, "")
	if err != nil {
		return nil
	}
	s := shown(ctx, r.socket)
	if s == nil || s.State == gateway.Stopping {
		return nil
	}
	c := dashC(path)
	return fmt.Errorf("a ptgate runs %s already: pid %d, since %s. How it does:  ptgate status%s. To make it read the file again:  ptgate reload%s",
		path, s.PID, s.Since.Format(time.DateTime), c, c)
}
