package main

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ptgate/gateway"
	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/routes"
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
		all := make([]way, 0, len(args))
		for _, a := range args {
			w, err := explain(cfg, a)
			if err != nil {
				bad = true
				w.Text, w.Error = err.Error(), err.Error()
			}
			w.Destination = a
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

// A way is what explain says of a destination.
type way struct {
	Destination string `json:"destination"` // as it was given
	Error       string `json:"error,omitempty"`
	Action      string `json:"action,omitempty"` // "bridges", "direct" or "block"
	Route       int    `json:"route,omitempty"`  // from 1; 0: no route takes it
	Pattern     string `json:"pattern,omitempty"`
	File        string `json:"file,omitempty"`
	Line        int    `json:"line,omitempty"`
	Via         []hop  `json:"via,omitempty"`
	Pick        string `json:"pick,omitempty"` // if there are several bridges
	Text        string `json:"text"`           // all of it for a person
}

// A hop is a bridge of a way.
type hop struct {
	Bridge    string `json:"bridge"`
	Transport string `json:"transport"`
	Far       string `json:"far"`
}

func explain(cfg *config.Config, arg string) (w way, _ error) {
	t, err := readDestination(arg)
	if err != nil {
		return w, err
	}
	m, ok := cfg.Table.Lookup(t)
	if !ok {
		w.Action, w.Text = "block", "no route takes it: blocked (SOCKS5 reply 2, HTTP 403)"
		return w, nil
	}
	w.File, w.Line, w.Pattern = cfg.Where(m)
	w.Route = m.Rule + 1
	r := cfg.Routes[m.Rule]
	where := fmt.Sprintf("route %d, pattern %q at %s:%d", w.Route, w.Pattern, w.File, w.Line)
	switch r.Action {
	case config.ActionBlock:
		w.Action, w.Text = "block", "blocked by "+where
		return w, nil
	case config.ActionDirect:
		w.Action, w.Text = "direct", "direct, without any bridge, by "+where
		switch {
		case cfg.ReachesPrivate(m):
		case t.Addr.IsValid() && !exit.Public(t.Addr):
			w.Action = "block"
			w.Text = "blocked: a private address, which " + where + " does not name: name it in to, or write private = true"
		default:
			w.Text += " (private addresses are blocked)"
		}
		return w, nil
	}
	w.Action = "bridges"
	var names []string
	for _, b := range r.Via {
		w.Via = append(w.Via, hop{b.Name, b.Transport, string(b.Far)})
		names = append(names, fmt.Sprintf("%s (%s, %s)", b.Name, b.Transport, b.Far))
	}
	w.Text = "via " + strings.Join(names, ", ")
	if len(r.Via) > 1 {
		w.Pick = string(r.Pick)
		w.Text += ", pick " + w.Pick
	}
	w.Text += ", by " + where
	if slices.ContainsFunc(r.Via, func(b *config.Bridge) bool { return b.Far == config.FarExit }) {
		w.Text += " (the far end's [exit] may still refuse)"
	}
	return w, nil
}

// readDestination reads what a person takes for one: the port may be absent.
func readDestination(arg string) (routes.Target, error) {
	arg, _, err := config.Pasted(arg, config.TextName)
	if err != nil {
		return routes.Target{}, fmt.Errorf("%w: it has %w", destination.ErrInvalid, err)
	}
	t, err := destination.Parse(arg)
	if err == nil {
		return t, nil
	}
	t, err2 := destination.FromHostPort(trimBrackets(arg), 443)
	if err2 == nil {
		return t, nil
	}
	invalid := func(format string, args ...any) (routes.Target, error) {
		return routes.Target{}, fmt.Errorf("%w: "+format, append([]any{destination.ErrInvalid}, args...)...)
	}
	switch {
	case arg == "":
		return invalid("it is empty: write HOST or HOST:PORT")
	case strings.Contains(arg, "://"):
		if u, err := url.Parse(arg); err == nil && u.Host != "" {
			host := u.Host
			if u.Scheme == "http" && u.Port() == "" {
				host += ":80"
			}
			return invalid("a URL: write only its host, %s", host)
		}
		return invalid("a URL: write only its host")
	case strings.ContainsAny(arg, " \t\n"):
		return invalid("it has a space in it: write each destination as a word of its own")
	case strings.Contains(arg, "*") || strings.HasPrefix(arg, "."):
		return invalid("a pattern: write a name that it might take, such as www.example.com")
	case strings.Contains(arg, "/"):
		return invalid("it has a \"/\" in it: write one host, neither a network nor a path")
	case !strings.Contains(arg, ":"):
		return routes.Target{}, err2 // the port is not what is wrong
	}
	return routes.Target{}, err
}

func trimBrackets(s string) string {
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' {
		return s[1 : len(s)-1]
	}
	return s
}
