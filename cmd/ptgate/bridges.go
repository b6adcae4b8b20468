package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ptgate/adapter/builtin"
	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/serve"
)

func newBridgesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bridges",
		Short: "On a server: print the bridge lines to hand to clients",
		Long: `On a server: print the bridge lines to hand to clients, one for each [[serve]].
A client puts one into its configuration as  line = "..."  of a [bridge.NAME].

The lines hold the transport's secrets: whoever has one can use the server.`,
		Example: `  ptgate bridges -c server.toml
  ptgate bridges -c server.toml --qr`,
		SuggestFor: []string{"line", "lines"},
		Args:       noArgs,
	}
	raw := jsonFlag(cmd)
	file := configFlag(cmd)
	qr := cmd.Flags().Bool("qr", false, "draw each line as a QR code, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if len(cfg.Serve) == 0 {
			return fmt.Errorf("%s has no [[serve]]: bridge lines come from the far end's configuration", cfg.Path)
		}
		all, _, err := announced(cmd, *file, cfg)
		if err != nil {
			return err
		}
		list := make([]offered, 0, len(all))
		if cfg.Exit.AsksUsers() && slices.ContainsFunc(cfg.Serve, func(s *config.Serve) bool { return s.Forward == "" }) {
			fmt.Fprintln(cmd.ErrOrStderr(), "# the exit asks for a user and password ([exit] users or users_file): a client needs  user  and  password  in its [bridge.NAME], too")
		}
		for i, a := range all {
			line, remark, err := gateway.BridgeLine(cfg.Serve[i], a)
			if err != nil {
				return err
			}
			if *raw {
				list = append(list, offered{a.Transport, line, remark, a.Old})
				continue
			}
			if remark != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "#", remark)
			}
			if !a.Old.IsZero() {
				fmt.Fprintf(cmd.ErrOrStderr(), "# %s: clients with an earlier line get in until %s, too\n", a.Transport, day(a.Old))
			}
			fmt.Fprintln(cmd.OutOrStdout(), line)
			if *qr {
				drawQR(cmd, line, fmt.Sprintf("ptgate bridges -c %s --qr", cfg.Path))
			}
		}
		if *raw {
			return printJSON(cmd.OutOrStdout(), list)
		}
		return nil
	}
	return cmd
}

// An offered is a bridge line as `ptgate bridges --json` prints it.
type offered struct {
	Transport string `json:"transport"`
	Line      string `json:"line"`
	Remark    string `json:"remark,omitempty"` // what is still missing
	// OldUntil is until when an earlier line is good, too. Zero: there is none.
	OldUntil time.Time `json:"old_until,omitzero"`
}

// day is a moment for people to read.
func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

// announced gives what clients need to know of each [[serve]] of cfg, and the state directory
// with the keys. file is as given with -c.
func announced(cmd *cobra.Command, file string, cfg *config.Config) (all []serve.Announced, stateDir string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	r, err := running(cmd.Context(), file, "")
	dirs, runs := r.file.StateDirs, err == nil
	if runs { // what another user has noted once is of another box
		dirs = []string{filepath.Dir(r.socket)}
	}
	for _, dir := range dirs {
		if all, ok := gateway.Noted(cfg, dir); ok {
			return all, dir, nil
		}
	}
	if runs { // a transport wants its state directory for itself
		return nil, "", fmt.Errorf("%s has changed since the ptgate that runs it has loaded it: `ptgate reload -c %s` comes first", cfg.Path, cfg.Path)
	}
	if keysInState(cfg) {
		fmt.Fprintf(cmd.ErrOrStderr(), "# no ptgate has served this file from %s yet: the keys there are for one that does. "+
			"If the server runs as another user, ask as that user\n", cfg.StateDir)
	}
	err = interruptible(cmd.Context(), func(ctx context.Context) (err error) {
		defer progress(cmd.ErrOrStderr(), func() string { return "starting the transports" })()
		all, err = gateway.Announce(ctx, cfg, exe)
		return err
	})
	return all, cfg.StateDir, err
}

// keysInState tells whether a transport has its keys in its state directory, and not
// in its options as `ptgate pair` writes them.
func keysInState(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.Serve, func(s *config.Serve) bool {
		row, _ := builtin.Lookup(s.Transport)
		return row.KeepsSecret(s.Options)
	})
}
