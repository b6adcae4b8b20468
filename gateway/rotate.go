package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ptgate/gateway/config"
	"ptgate/gateway/serve"
)

// ServeName is how Rotate names a [[serve]].
func ServeName(c *config.Serve) string { return c.Transport + " " + c.Bind.String() }

// Rotate gives new keys to servers of the running configuration, which are named by
// ServeName. The present keys are good beside them until a time; if that is not in the
// future, they end now. Open connections go on.
//
// If ctx has ended before it begins, nothing is done: whoever asked has gone, and may ask again.
func (g *Gateway) Rotate(ctx context.Context, names []string, until time.Time) error {
	done, err := g.changing()
	if err != nil {
		return err
	}
	defer done()
	if err = ctx.Err(); err != nil {
		return err
	}
	v := g.view.Load()
	states := make([]serveState, len(v.servers))
	for i, s := range v.servers {
		states[i] = serveState{v.cfg.Serve[i], s.State()}
	}
	err = rotate(states, names, until)
	changed, readErr := g.readKeys(v.servers)
	if changed {
		g.note(v.cfg, v.servers)
		g.offer(v.cfg, v.servers)
	}
	return errors.Join(err, readErr)
}

// Rotate does what the method does, where no ptgate runs cfg. stateDir has the keys, and the
// notes of all [[serve]].
func Rotate(cfg *config.Config, stateDir string, names []string, until time.Time) error {
	where := *cfg
	where.StateDir = stateDir
	return rotate(serveStates(&where, readNotes(stateDir)), names, until)
}

func rotate(states []serveState, names []string, until time.Time) (err error) {
	var chosen []serveState
	for _, name := range names {
		i := slices.IndexFunc(states, func(s serveState) bool {
			return ServeName(s.cfg) == name && !slices.Contains(chosen, s) // with port 0, several have one name
		})
		if i < 0 {
			return fmt.Errorf("the running configuration has no [[serve]] %s: `ptgate reload` comes first", name)
		}
		chosen = append(chosen, states[i])
	}
	for _, s := range chosen {
		err = errors.Join(err, serve.Rotate(s.cfg, s.state, until))
	}
	return err
}

// readKeys makes servers take keys that were rotated, and tells whether there were any. After
// an error, the server goes on with those that it has.
func (g *Gateway) readKeys(servers []*serve.Server) (changed bool, err error) {
	for _, s := range servers {
		renewed, readErr := s.ReadKeys()
		if readErr != nil {
			g.log.Error("new keys can't be read: the earlier ones go on", "serve", s.Announced().Transport, "port", s.Bind().Port(), "error", readErr)
			err = errors.Join(err, fmt.Errorf("%s: %w", s.Announced().Transport, readErr))
		}
		changed = changed || renewed
	}
	return changed, err
}
