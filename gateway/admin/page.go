package admin

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"ptgate/gateway/config"
	"ptgate/gateway/explain"
	"ptgate/gateway/outcome"
)

const (
	eventsEvery = 2 * time.Second  // how often the page may change
	pingEvery   = 15 * time.Second // so that a browser that is gone shows
	maxEvents   = 16               // pages at once that are kept up to date
	maxUsers    = 20               // that the page shows
	maxShown    = 10               // troubles, in the same way
	maxAsked    = 300              // bytes of what is asked for
)

//go:embed page.html page.css page.js
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{"code": withCode, "quoted": quoted}).ParseFS(files, "page.html"))

// static answers with a file of the page.
func static(name, contentType string) http.HandlerFunc {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is built in
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Write(content)
	}
}

// A view is what the page shows.
type view struct {
	Status
	Heads    []headView // one for each end that runs here
	Changed  string     // keys that a restart reads
	Open     string
	Loads    string
	Uptime   string
	Gateway  bool // there are routes
	Server   bool // something is served
	Bridges  []bridgeView
	Routes   []routeView
	Serves   []serveView
	Users    []userView
	More     int // users that are not shown
	Refused  []refusedView
	Plots    []plotsView
	Troubles []troubleView
	Older    int // troubles that are not shown

	Asked, Answer, Fault string // explain
	PAC                  string // the address; "": no port for browsers
	Password             bool   // the page asks for one
	HTTP, SOCKS          string // ports of the gateway; "": there is none
	Host                 string // of the page
}

// A headView says whether an end works, and what to do next.
type headView struct {
	Look, Text string
	More       []headLine
}

// A headLine is a sentence, and a place of the page that has more.
type headLine struct{ Text, Link, Place string }

type bridgeView struct {
	Name, Look, Text string
	Verdict, Next    string   // if it rests: what is wrong, and what to do
	Learned          []string // a sentence each
	More             []string // the same, but numbers of less weight
}

type routeView struct {
	RouteStatus
	Way  string
	Look string
	Text string
}

type serveView struct {
	Name, Look, Text, More string
}

type userView struct {
	Name     string
	Active   int
	Last     string
	Up, Down string
}

type refusedView struct {
	Reason, Text string
	Times        int64
}

type plotsView struct {
	Title string
	Plots []plot
}

type troubleView struct {
	What, Next, Whose, When, Times string
}

// makeView collects all that the page shows.
func (s *Server) makeView() *view {
	now := time.Now()
	s.history.sample(s.cfg.Book, now)
	v := &view{Status: s.cfg.Status()}
	v.Changed, v.Open = strings.Join(v.Restart, ", "), plural(v.Active, "connection")
	v.Uptime, v.Loads = ago(now.Sub(v.Since)), ago(now.Sub(v.Loaded))
	v.Gateway, v.Server = len(v.Status.Routes) > 0, len(v.Serve) > 0
	looks := map[string]string{}
	for i := range v.Status.Bridges {
		b := &v.Status.Bridges[i]
		x := bridgeView{Name: b.Name, Look: look(b), Text: b.Brief(now)}
		if looks[b.Name] = x.Look; b.State == "up" {
			looks[b.Name] = good // for a route, whatever else is to be said of it
		}
		if b.Verdict != nil {
			x.Verdict = sentences(b.Verdict.Says, b.Verdict.Itself)
			x.Next = sentences(b.Verdict.Next)
		}
		if n := len(b.Learned); n > 0 {
			x.Text += "; works around " + plural(int64(n), "limit") + " of the network"
		}
		for _, l := range b.Learned {
			x.Learned = append(x.Learned, sentences(l.Text))
		}
		if b.PT != nil && b.PT.Failures > 0 {
			x.More = append(x.More, sentences("its program has failed "+plural(int64(b.PT.Failures), "time")+programWords(b.PT, now)))
		}
		x.More = append(x.More, sentences(bridgeNumbers(b)))
		v.Bridges = append(v.Bridges, x)
	}
	for _, r := range v.Status.Routes {
		x := routeView{RouteStatus: r, Way: strings.Join(r.Via, ", ")}
		switch {
		case r.Action == "direct":
			x.Way, x.Text, x.Look = "directly, without a bridge", "", idle
		case r.Action == "block":
			x.Way, x.Text, x.Look = "nowhere: blocked", "", idle
		default:
			x.Look = routeLook(&r, looks)
			x.Text = map[string]string{good: "works", warn: "waits for a bridge", idle: "not used yet", bad: "no bridge works"}[x.Look]
		}
		if len(r.Via) > 1 {
			x.Way += " (" + map[config.Pick]string{config.PickFirst: "the first that works", config.PickFastest: "the fastest", config.PickSpread: "shared out"}[config.Pick(r.Pick)] + ")"
		}
		v.Routes = append(v.Routes, x)
	}
	for i := range v.Serve {
		x := &v.Serve[i]
		sv := serveView{Name: x.Transport + " at " + x.Address, More: fmt.Sprintf("%s of clients, %s; %s from clients, %s to clients.",
			plural(x.Clients, "connection"), plural(x.Active, "stream"), size(x.In), size(x.Out))}
		sv.Look, sv.Text = serveWords(&x.PT, now)
		if !x.OldUntil.IsZero() {
			sv.More += " Old bridge lines are good until " + x.OldUntil.Local().Format("2006-01-02 15:04") + "."
		}
		v.Serves = append(v.Serves, sv)
	}
	users := byUse(v.Status.Users)
	v.More = max(0, len(users)-maxUsers)
	for _, u := range users[:len(users)-v.More] {
		x := userView{u.Name, u.Active, "never", size(u.Up), size(u.Down)}
		switch {
		case u.Active > 0:
			x.Last = "now"
		case !u.Last.IsZero():
			x.Last = ago(now.Sub(u.Last)) + " ago"
		}
		v.Users = append(v.Users, x)
	}
	for _, o := range v.Outcomes {
		if o.Outcome == outcome.ExitRefused && o.Value > 0 {
			reason := o.Labels["reason"]
			v.Refused = append(v.Refused, refusedView{reason, sentences(exitWords[reason]), o.Value})
		}
	}
	if v.Gateway {
		v.Plots = append(v.Plots, plotsView{"Programs here", s.history.plots(0, "to programs", "from programs", "Connections")})
	}
	if v.Server {
		v.Plots = append(v.Plots, plotsView{"Clients", s.history.plots(1, "from clients", "to clients", "Streams")})
	}
	v.Heads = heads(v)
	troubles, older := s.history.recent(maxShown, now)
	v.Older = older
	for _, t := range troubles {
		v.Troubles = append(v.Troubles, troubleView{t.what, t.next, strings.Join(t.labels, ", "), t.when(now), plural(t.times, "time")})
	}
	return v
}

// page is the status page.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	v := s.makeView()
	v.Host = r.Host
	v.Asked = strings.TrimSpace(r.URL.Query().Get("name"))
	switch {
	case v.Asked == "":
	case len(v.Asked) > maxAsked:
		v.Asked, v.Fault = "", "That is longer than any name."
	default:
		cfg := s.cfg.Running()
		way, err := explain.Destination(cfg, v.Asked, !cfg.Log.Private)
		if v.Answer = way.Text; err != nil {
			v.Fault = plain(err.Error())
		}
		v.Asked = plain(v.Asked)
	}
	v.Password = len(s.cfg.Running().Admin.Users) > 0
	if proxyFor(v.Listeners, r) != "" {
		v.PAC = "http://" + r.Host + "/proxy.pac"
	}
	for _, l := range v.Listeners {
		a, err := netip.ParseAddrPort(l.Address)
		if err != nil {
			continue
		}
		if v.HTTP == "" && (l.Front == "http" || l.Front == "mixed") {
			v.HTTP = a.String()
		}
		if v.SOCKS == "" && (l.Front == "socks5" || l.Front == "mixed") {
			v.SOCKS = a.String()
		}
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	s.write(w, "page.html", v)
}

// plain has no control characters.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return unicode.ReplacementChar
		}
		return c
	}, text)
}

// MostAsked is how much the box of the page takes.
func (v *view) MostAsked() int { return maxAsked }

// write answers with a template, whole or not at all.
func (s *Server) write(w http.ResponseWriter, name string, v *view) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, v); err != nil {
		panic(err) // a fault of ours, told as one
	}
	w.Write(b.Bytes())
}

// events sends what has changed on the page, for as long as somebody looks at it
// (WHATWG HTML section 9.2, server-sent events).
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	if s.open.Add(1) > maxEvents {
		s.open.Add(-1)
		refuse(w, "There are too many open status pages.", http.StatusServiceUnavailable)
		return
	}
	defer s.open.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	rc := http.NewResponseController(w)
	tick := time.NewTicker(s.eventsEvery)
	defer tick.Stop()
	var before []byte
	sent := time.Now()
	for {
		var b bytes.Buffer
		if err := templates.ExecuteTemplate(&b, "live", s.makeView()); err != nil {
			panic(err)
		}
		now := time.Now()
		var message []byte
		switch {
		case !bytes.Equal(b.Bytes(), before):
			before = b.Bytes()
			message = append([]byte("data: "), bytes.ReplaceAll(before, []byte("\n"), []byte("\ndata: "))...)
			message = append(message, "\n\n"...)
		case now.Sub(sent) >= pingEvery:
			message = []byte(":\n\n")
		}
		if message != nil {
			sent = now
			rc.SetWriteDeadline(now.Add(writeTimeout))
			if _, err := w.Write(message); err != nil || rc.Flush() != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// sampling keeps the history while there are listeners.
func (s *Server) sampling(ctx context.Context) {
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		s.history.sample(s.cfg.Book, time.Now())
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
