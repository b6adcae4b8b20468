package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/config"
	"ptgate/gateway/explain"
)

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration: every error as FILE:LINE: message",
		Long: `Check a configuration, and whether this machine has what it names: each problem as
FILE:LINE: message. Exit code 1 if one of them is an error; warnings are about what
works, and is probably a mistake.`,
		Example: `  ptgate check -c client.toml
  ptgate check --json | jq -r '.problems[].message'`,
		SuggestFor: []string{"test", "validate", "verify", "lint"},
		Args:       noArgs,
	}
	file := configFlag(cmd)
	raw := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := config.Find(*file)
		if err != nil {
			return err
		}
		cfg, problems := config.Load(path)
		problems = append([]config.Problem{}, problems...) // JSON has a list, also if it is empty
		fine := cfg != nil
		if cfg != nil {
			_, err := running(cmd.Context(), path, "")
			problems = append(problems, gateway.Check(cfg, path, err == nil)...)
			config.Sort(problems, path)
			fine = !config.HasError(problems)
		}
		if *raw {
			out := checked{File: path, OK: fine, Problems: problems}
			if cfg != nil {
				out.Routes, out.Bridges, out.Serve = len(cfg.Routes), len(cfg.Bridges), len(cfg.Serve)
			}
			if err := printJSON(cmd.OutOrStdout(), out); err != nil {
				return err
			}
		} else {
			for _, p := range problems {
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			if fine {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: fine: %s\n", path, summary(cfg))
			}
		}
		if !fine {
			return exitError(1)
		}
		return nil
	}
	return cmd
}

// A checked is what `ptgate check --json` prints. The numbers are of a file that can be read.
type checked struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"` // there are no errors; there may be warnings
	Problems []config.Problem `json:"problems"`
	Routes   int              `json:"routes"`
	Bridges  int              `json:"bridges"`
	Serve    int              `json:"serve"`
}

func summary(cfg *config.Config) string {
	return fmt.Sprintf("%s, %s, %s", plural(len(cfg.Routes), "route"), plural(len(cfg.Bridges), "bridge"), plural(len(cfg.Serve), "served transport"))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func newExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain HOST[:PORT]...",
		Short: "Tell which route takes a destination, by which line, through which bridges",
		Long: `Tell which route takes a destination, by which pattern on which line, and through
which bridges it goes. Nothing is looked up or dialled. Without a port, 443.`,
		Example: `  ptgate explain www.example.com
  ptgate explain -c client.toml git.example.org:22 203.0.113.7:443`,
		SuggestFor: []string{"route", "routes", "which"},
		Args:       someArgs("HOST[:PORT]", "www.example.com:443"),
	}
	file := configFlag(cmd)
	raw := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := load(*file, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		bad := false
		all := make([]explain.Way, 0, len(args))
		for _, a := range args {
			w, err := explain.Destination(cfg, a, true)
			if err != nil {
				bad = true
				w.Text, w.Error = err.Error(), err.Error()
			}
			w.Destination = a
			addTold(cfg, &w)
			all = append(all, w)
		}
		if *raw {
			if err := printJSON(cmd.OutOrStdout(), all); err != nil {
				return err
			}
		} else {
			for _, w := range all {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", cmp.Or(w.Destination, `""`), w.Text)
			}
		}
		if bad {
			return exitError(1)
		}
		return nil
	}
	return cmd
}

// addTold adds the ways that servers have told of. They stand in no file that a person would look
// into.
func addTold(cfg *config.Config, w *explain.Way) {
	for i, hop := range w.Via {
		n := slices.IndexFunc(cfg.Bridges, func(b *config.Bridge) bool { return b.Name == hop.Bridge })
		if n < 0 {
			continue
		}
		if w.Via[i].Told = bridges.ToldWays(cfg, cfg.Bridges[n]); w.Via[i].Told > 0 {
			w.Text += fmt.Sprintf("; behind that, %s that the server of %s has told of", plural(w.Via[i].Told, "more way"), hop.Bridge)
		}
	}
}
