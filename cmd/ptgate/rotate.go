package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ptgate/adapter/builtin"
	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/control"
	"ptgate/gateway/serve"
	"ptgate/gateway/users"
)

func newRotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate [SERVE]...",
		Short: "On a server: new keys, and bridge lines, with the old ones good for a while",
		Long: `On a server: make new keys for obfs4 and a new secret path for webtunnel, and print
the new bridge lines. Lines that were handed out before are good until a date, on the
same port; then they end, without a restart. A running ptgate takes the new keys at
once, and what is open stays open.

SERVE is a transport, or a port as in bind, of the configuration; without one, every
[[serve]] gets new keys that can have them. Another program such as obfs4proxy has one
set of keys, and other transports have none: they can't be rotated.

The keys are in state_dir: the configuration stays as it is, also where it has keys or
a url of its own. A backup needs both.`,
		Example: `  ptgate rotate
  ptgate rotate -c server.toml 443 --keep 7d
  ptgate rotate webtunnel --keep 2026-12-31 --json
  ptgate rotate --now`,
		SuggestFor: []string{"renew", "rekey"},
	}
	raw := jsonFlag(cmd)
	file := configFlag(cmd)
	keep := cmd.Flags().String("keep", "30d", "how long old lines are good, as in 30d or 12h, or until `WHEN`: a day as in 2026-12-31")
	completeFlag(cmd, "keep", cobra.NoFileCompletions)
	end := cmd.Flags().Bool("now", false, "end all old lines at once, for instance because one has got into wrong hands")
	cmd.ValidArgsFunction = rotatable(file)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		now := time.Now()
		until := now
		if *end && cmd.Flags().Changed("keep") {
			return usagef("rotate: old lines end with --now, or are good for a while with --keep: not both")
		}
		if !*end {
			var err error
			if until, err = users.ParseTime(untilWhen(*keep, now)); err != nil {
				return usagef("--keep is %q: write as in 30d, or a day as in 2026-12-31", *keep)
			}
			if !until.After(now) {
				return usagef("--keep %s: that is over already; to end old lines at once: --now", *keep)
			}
		}
		return rotate(cmd, *file, args, until, *end, *raw)
	}
	return cmd
}

// rotate makes new keys for the [[serve]] that words name, and prints their lines. With now, old
// lines end at once; otherwise they are good until that time.
func rotate(cmd *cobra.Command, file string, words []string, until time.Time, now, raw bool) error {
	cfg, err := loadErrors(file, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	chosen, err := choose(cfg, words)
	if err != nil {
		return err
	}
	// It makes the keys if there are none yet.
	before, stateDir, err := announced(cmd, file, cfg)
	if err != nil {
		return err
	}
	told, rotateErr := rotateKeys(cmd.Context(), file, cfg, stateDir, chosen, until)
	all, _, err := announced(cmd, file, cfg)
	if err != nil {
		return errors.Join(rotateErr, err)
	}
	// After an error, some have new keys still: their lines are needed.
	list := make([]offered, 0, len(all))
	for i, s := range cfg.Serve {
		switch {
		case slices.Contains(chosen, s):
			if slices.Equal(before[i].Args, all[i].Args) {
				continue
			}
			o, err := rotated(cmd.ErrOrStderr(), s, all[i])
			if err != nil {
				return errors.Join(rotateErr, err)
			}
			if list = append(list, o); !raw {
				fmt.Fprintln(cmd.OutOrStdout(), o.Line)
			}
		case len(words) == 0:
			fmt.Fprintf(cmd.ErrOrStderr(), "# %s on port %d stays as it is: %s\n", s.Transport, s.Bind.Port(), fixed(s))
		}
	}
	if raw && (rotateErr == nil || len(list) > 0) {
		if err := printJSON(cmd.OutOrStdout(), list); err != nil {
			return errors.Join(rotateErr, err)
		}
	}
	if rotateErr != nil {
		return rotateErr
	}
	note := "# Hand the new lines out before then. Invitations that are made from now on have them; links of before have the old ones."
	if now {
		note = "# Who has an old line does not get in any more: hand the new ones out. Invitations that are made from now on have them. What is open stays open."
	}
	fmt.Fprintln(cmd.ErrOrStderr(), note)
	if !told {
		fmt.Fprintf(cmd.ErrOrStderr(), "# no ptgate runs %s now: the new keys are in %s for the next one that does\n", cfg.Path, stateDir)
	}
	return nil
}

// choose finds the [[serve]] that words name; without words, those that can be rotated.
func choose(cfg *config.Config, words []string) (chosen []*config.Serve, err error) {
	if len(words) == 0 {
		for _, s := range cfg.Serve {
			if serve.Rotates(s) {
				chosen = append(chosen, s)
			}
		}
		if len(chosen) == 0 {
			return nil, fmt.Errorf("%s has no [[serve]] that can be rotated: obfs4 and webtunnel can, where ptgate itself speaks them", cfg.Path)
		}
		return chosen, nil
	}
	for _, word := range words {
		found := false
		for _, s := range cfg.Serve {
			if word != s.Transport && word != strconv.Itoa(int(s.Bind.Port())) {
				continue
			}
			if found = true; !serve.Rotates(s) {
				return nil, fmt.Errorf("%s on port %d can't be rotated: %s", s.Transport, s.Bind.Port(), fixed(s))
			}
			if !slices.Contains(chosen, s) {
				chosen = append(chosen, s)
			}
		}
		if !found {
			var known []string
			for _, s := range cfg.Serve {
				known = append(known, fmt.Sprintf("%s (%d)", s.Transport, s.Bind.Port()))
			}
			return nil, fmt.Errorf("%s has no [[serve]] %q; it has %s", cfg.Path, word, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// fixed says why a [[serve]] can't be rotated.
func fixed(s *config.Serve) string {
	row, _ := builtin.Lookup(s.Transport)
	if !row.Rotates() {
		return "it has no keys that ptgate could renew"
	}
	return fmt.Sprintf("its program (%s) has one set of keys at a time. Let ptgate itself speak %s, or put new keys on another port with a second [[serve]]",
		filepath.Base(s.PT.Exec[0]), s.Transport)
}

// rotateKeys has the running ptgate make new keys; told is false if none runs. Then it makes
// them itself.
func rotateKeys(ctx context.Context, file string, cfg *config.Config, stateDir string, chosen []*config.Serve, until time.Time) (told bool, err error) {
	names := make([]string, len(chosen))
	for i, s := range chosen {
		names[i] = gateway.ServeName(s)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := running(ctx, file, "")
	if err == nil {
		err = control.Rotate(ctx, r.socket, names, until)
	}
	if !errors.Is(err, control.ErrNotRunning) {
		return err == nil, err
	}
	dir, err := os.Open(stateDir)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if err := lock(dir); err != nil { // two commands at once must not lose each other's keys
		return false, err
	}
	return false, gateway.Rotate(cfg, stateDir, names, until)
}

// rotated makes the new line, and says until when the old ones are good.
func rotated(out io.Writer, s *config.Serve, a serve.Announced) (o offered, err error) {
	line, remark, err := gateway.BridgeLine(s, a)
	if err != nil {
		return o, err
	}
	if remark != "" {
		fmt.Fprintln(out, "#", remark)
	}
	if row, _ := builtin.Lookup(s.Transport); row.Front && s.Site == nil {
		web, _ := builtin.WebOf(s.Transport, a.Args)
		fmt.Fprintf(out, "# %s stands behind a web server: tell that to pass the path %s on, too, before anybody gets the new line\n", s.Transport, web.Path)
	}
	if a.Old.IsZero() {
		fmt.Fprintf(out, "# %s on port %d: old lines have ended\n", s.Transport, s.Bind.Port())
	} else {
		fmt.Fprintf(out, "# %s on port %d: old lines are good until %s\n", s.Transport, s.Bind.Port(), day(a.Old))
	}
	return offered{s.Transport, line, remark, a.Old}, nil
}
