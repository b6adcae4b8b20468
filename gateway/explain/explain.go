// Package explain says in words which way a destination takes. Nothing is looked up or
// dialled.
package explain

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"ptgate/gateway/config"
	"ptgate/gateway/destination"
	"ptgate/gateway/exit"
	"ptgate/routes"
)

// A Way is the way of a destination.
type Way struct {
	Destination string `json:"destination"` // as it was given
	Error       string `json:"error,omitempty"`
	Action      string `json:"action,omitempty"` // "bridges", "direct" or "block"
	Route       int    `json:"route,omitempty"`  // from 1; 0: no route takes it
	Pattern     string `json:"pattern,omitempty"`
	File        string `json:"file,omitempty"`
	Line        int    `json:"line,omitempty"`
	Via         []Hop  `json:"via,omitempty"`
	Pick        string `json:"pick,omitempty"` // if there are several bridges
	Text        string `json:"text"`           // all of it for a person
}

// A Hop is a bridge of a Way.
type Hop struct {
	Bridge    string `json:"bridge"`
	Transport string `json:"transport"`
	Far       string `json:"far"`
	Told      int    `json:"told,omitempty"` // more ways that its server has told of; Destination leaves it out
}

// Destination tells which way a destination takes, by which route, and through which
// bridges. The port may be absent: then it is 443. Without patterns, the text does not
// say what the route's pattern is.
func Destination(cfg *config.Config, arg string, patterns bool) (w Way, _ error) {
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
	if !patterns {
		where = fmt.Sprintf("route %d at line %d", w.Route, r.Line)
	}
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
		w.Via = append(w.Via, Hop{Bridge: b.Name, Transport: b.Transport, Far: string(b.Far)})
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
