package admin

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/bridges"
	"ptgate/gateway/supervise"
)

// The looks of a state.
const (
	good = "good"
	idle = "idle"
	warn = "warn"
	bad  = "bad"
)

// look is that of a bridge's state.
func look(b *bridges.Status) string {
	switch b.State {
	case "up":
		if b.Leaving || b.Changed || b.PT != nil && b.PT.Failures > 0 {
			return warn
		}
		return good
	case "suspect", "detached":
		return warn
	case "resting":
		return bad
	}
	return idle
}

// sentences makes whole sentences of texts that a log has without a capital letter and a
// full stop.
func sentences(texts ...string) string {
	var all []string
	for _, s := range texts {
		if s == "" {
			continue
		}
		s = strings.ToUpper(s[:1]) + s[1:]
		if !strings.ContainsAny(s[len(s)-1:], ".?!") {
			s += "."
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

// serveWords says how a served transport does.
func serveWords(s *supervise.Status, now time.Time) (look, text string) {
	switch s.State {
	case supervise.Running:
		if s.Failures == 0 {
			return good, "works"
		}
		return warn, "works; its program has failed" + programWords(s, now)
	case supervise.Waiting:
		return bad, "its program has failed" + programWords(s, now)
	}
	return warn, "it is " + string(s.State)
}

// programWords say what comes after "its program has failed".
func programWords(s *supervise.Status, now time.Time) (text string) {
	switch s.State {
	case supervise.Running:
		text = ", and was started again"
	case supervise.Waiting:
		if wait := s.Until.Sub(now); wait > 0 {
			text = ", and starts again in " + ago(wait)
		}
	}
	if s.Error != "" {
		text += ": " + s.Error
	}
	return text
}

// A number and its unit stay on one line.
const space = "\u00a0"

// ago is a length of time with no more digits than a person wants to read.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return "1" + space + "s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d%ss", int(d.Seconds()+0.5), space)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d%smin", int(d.Minutes()+0.5), space)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d%sh", int(d.Hours()+0.5), space)
	}
	return fmt.Sprintf("%d%sdays", int(d.Hours()/24+0.5), space)
}

// size is a number of bytes.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d%sB", n, space)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < 3 {
		f, i = f/1024, i+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f%s%ciB", f, space, "KMGT"[i])
	}
	return fmt.Sprintf("%.0f%s%ciB", f, space, "KMGT"[i])
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// bridgeNumbers says what goes through a bridge.
func bridgeNumbers(b *bridges.Status) string {
	text := "by " + b.Transport
	if b.Active > 0 || b.Carriers > 0 {
		text += fmt.Sprintf("; %s over %s", plural(b.Active, "connection"), plural(int64(b.Carriers), "carrier"))
	}
	if b.In > 0 || b.Out > 0 {
		text += fmt.Sprintf("; %s from it, %s to it", size(b.In), size(b.Out))
	}
	return text
}

// exitWords say to the operator of an exit why it refuses.
var exitWords = map[string]string{
	answer.Blocked.String():     "allow or deny of [exit], or allow of the user, says no",
	answer.Refused.String():     "the destination is up, and nothing listens on that port",
	answer.Unreachable.String(): "there is no way to the destination from this server",
	answer.NotFound.String():    "there is no such name",
	answer.NoNames.String():     "no name server answered: look at /etc/resolv.conf, and whether the firewall lets port 53 out",
	answer.NameFailed.String():  "a name server reported a failure: if it is so with every name, look at /etc/resolv.conf",
	answer.Timeout.String():     "the destination did not answer in time",
	answer.Limit.String():       "there are as many connections as there may be, or what the user may use is used up",
	answer.Command.String():     "this exit opens TCP connections only",
	answer.BadRequest.String():  "the destination makes no sense",
	answer.Internal.String():    "this is a fault of ptgate: the log says more",
}

// pageWords say why this page has refused a request, and what to do, by the reasons of
// Server.refused.
var pageWords = map[string]string{
	"host":     "It was for another name. If it was yours: ask for this page by its address, or as localhost.",
	"site":     "A browser here has shown a web page that tried to read this one. If it was yours: open this page by itself.",
	"password": "If it was yours: give user and password as users in [admin] has them.",
	"owner":    "Another user of this machine has asked. If it was you: name that user in owners of [admin], or of [listen] if [admin] has none.",
	"many":     fmt.Sprintf("It has room for %d connections at once. If they are yours: close some.", maxConns),
}

// byUse has the users who use the exit now first, and then those who were seen last.
func byUse(all []UserStatus) []UserStatus {
	return slices.SortedStableFunc(slices.Values(all), func(a, b UserStatus) int {
		return cmp.Or(cmp.Compare(b.Active, a.Active), b.Last.Compare(a.Last))
	})
}

// routeLook is that of a route with bridges.
func routeLook(r *RouteStatus, looks map[string]string) string {
	has := func(all ...string) bool {
		return slices.ContainsFunc(r.Via, func(name string) bool { return slices.Contains(all, looks[name]) })
	}
	switch {
	case !has(good, warn, idle):
		return bad
	case !has(good, idle), !r.Ready && has(warn):
		return warn
	case !r.Ready:
		return idle
	}
	return good
}

const maxHeadLines = 5 // of one end

// heads says of each end whether it works, and what to do next.
func heads(v *view) (all []headView) {
	switch v.State {
	case Starting:
		return []headView{{warn, "ptgate is starting", []headLine{{Text: "That takes a few seconds. If it stays so, the log says why."}}}}
	case Stopping:
		return []headView{{warn, "ptgate is stopping", []headLine{{Text: "Nothing new is accepted. What is open may go on for a while."}}}}
	}
	if v.Gateway {
		all = append(all, gatewayHead(v))
	}
	if v.Server {
		all = append(all, serverHead(v))
	}
	return all
}

func gatewayHead(v *view) headView {
	lines := map[string][]headLine{} // by the look of the route
	for _, r := range v.Routes {
		line := headLine{Text: fmt.Sprintf("Route %d (line %d): %s.", r.Route, r.Line, r.Text)}
		switch {
		case r.Action != "via":
			continue
		case r.Look == warn || r.Look == bad:
			line.Link, line.Place = "What to do", "bridge-"+r.Via[0]
		}
		lines[r.Look] = append(lines[r.Look], line)
	}
	setUp := headLine{Link: "Set up a program", Place: "setup"}
	switch {
	case len(lines[bad]) > 0 && len(lines) == 1:
		return headView{bad, "It does not work: no bridge works", few(lines[bad])}
	case len(lines[bad]) > 0:
		return headView{bad, "Not all routes work", few(append(lines[bad], lines[warn]...))}
	case len(lines[warn]) > 0:
		return headView{warn, "The server does not answer at the moment", few(append([]headLine{{Text: "What is open waits, and goes on when it answers."}}, lines[warn]...))}
	case len(lines[idle]) > 0 && len(lines) == 1:
		setUp.Text = "No program has asked for anything that needs a bridge yet, and so none was tried. `ptgate probe` tries them now."
		return headView{idle, "No bridge was used yet", []headLine{setUp}}
	case len(lines) == 0:
		return headView{good, "It works: no route needs a bridge", []headLine{setUp}}
	}
	return headView{good, "It works", few(append([]headLine{setUp}, lines[idle]...))}
}

func serverHead(v *view) headView {
	var lines []headLine
	worst, down := warn, 0
	for i, x := range v.Serves {
		switch x.Look {
		case bad:
			worst = bad
			lines = append(lines, headLine{x.Name + ": its program does not run.", "Why", "serve-title"})
		case warn:
			lines = append(lines, headLine{Text: fmt.Sprintf("%s: %s.", x.Name, x.Text)})
		}
		if v.Serve[i].PT.State != supervise.Running {
			down++
		}
	}
	switch {
	case down == len(v.Serves):
		return headView{worst, "Clients can't connect: nothing that is served works", few(lines)}
	case down > 0:
		return headView{worst, "Not all that is served works", few(lines)}
	case len(lines) > 0:
		return headView{worst, "Clients can connect; a program has failed, and was started again", few(lines)}
	case v.AsksUsers:
		return headView{good, "Clients can connect", []headLine{{Text: "`ptgate invite NAME` makes a link for one more."}}}
	}
	return headView{good, "Clients can connect", []headLine{{Text: "`ptgate bridges` prints what a client needs."}}}
}

// few leaves out what is too much for the first sight.
func few(all []headLine) []headLine {
	if more := len(all) - maxHeadLines; more > 0 {
		return append(all[:maxHeadLines:maxHeadLines], headLine{Text: fmt.Sprintf("And %d more.", more)})
	}
	return all
}

// withCode makes code of what stands between backticks.
func withCode(text string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(text, "`") {
		if i%2 == 1 {
			part = "<code>" + template.HTMLEscapeString(part) + "</code>"
		} else {
			part = template.HTMLEscapeString(part)
		}
		b.WriteString(part)
	}
	return template.HTML(b.String())
}

// quoted is a word of a shell's command line.
func quoted(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }
