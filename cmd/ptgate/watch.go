package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"ptgate/gateway"
	"ptgate/gateway/bridges"
	"ptgate/gateway/control"
	"ptgate/gateway/outcome"
)

// watchEvery is the time between two looks.
const watchEvery = time.Second

// watchStatus shows the status of the ptgate that runs a file, until ctx or the process
// ends: on a terminal always in the same place, elsewhere one below the other.
func watchStatus(ctx context.Context, file, stateDir string, out io.Writer) error {
	ask := func() (*gateway.Status, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r, err := running(ctx, file, stateDir)
		if err != nil {
			return nil, err
		}
		b, err := control.Status(ctx, r.socket)
		if err != nil {
			return nil, err
		}
		s := new(gateway.Status)
		return s, json.Unmarshal(b, s)
	}
	size := func() (width, height int, ok bool) { return 0, 0, false }
	if takesCommands(out) {
		f := out.(descriptor)
		size = func() (int, int, bool) {
			width, height, err := term.GetSize(int(f.Fd()))
			return width, height, err == nil
		}
	}
	return watch(ctx, ask, size, out)
}

// watch asks for the status and shows it. The first answer may be none at all: then there
// is nothing to watch. A ptgate that ends later may be started again.
func watch(ctx context.Context, ask func() (*gateway.Status, error), size func() (width, height int, ok bool), out io.Writer) error {
	v := new(view)
	for first := true; ; first = false {
		s, err := ask()
		if first && err != nil {
			return err
		}
		lines := v.lines(s, err, time.Now())
		width, height, redraw := size()
		if redraw {
			lines = fit(lines, width, height)
		}
		var b strings.Builder
		if redraw && first {
			b.WriteString("\x1b[2J")
		}
		if redraw {
			b.WriteString("\x1b[H")
		}
		for _, line := range lines {
			b.WriteString(plainText(line))
			if redraw {
				b.WriteString("\x1b[K")
			}
			b.WriteByte('\n')
		}
		if redraw {
			b.WriteString("\x1b[J")
		} else {
			b.WriteByte('\n')
		}
		if _, err := io.WriteString(out, b.String()); err != nil {
			return err
		}
		t := time.NewTimer(watchEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// A view remembers what it has shown, to tell what has changed.
type view struct {
	last     *gateway.Status
	at       time.Time // of last
	base     map[string]int64
	began    time.Time
	troubles []mishap // the youngest last
}

// A mishap is something that has gone wrong since the view began.
type mishap struct {
	key   string
	text  string
	count int64
	at    time.Time
}

// mostTroubles is how many kinds of trouble are shown.
const mostTroubles = 6

// lines makes the view of a status; err says why there is none.
func (v *view) lines(s *gateway.Status, err error, now time.Time) (all []string) {
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if err != nil {
		text := err.Error()
		if errors.Is(err, control.ErrNotRunning) {
			text = "no ptgate runs this configuration at the moment"
		}
		v.last = nil
		return []string{now.Format(time.TimeOnly) + "  " + text}
	}
	if v.last != nil && (v.last.PID != s.PID || !v.last.Since.Equal(s.Since)) {
		v.last, v.base = nil, nil // another process, which counts from 0
	}
	rate := func(now, last int64, t time.Duration) string {
		if t <= 0 {
			return "…"
		}
		return size(max(0, int64(float64(now-last)/t.Seconds()))) + "/s"
	}
	var since time.Duration
	last := s
	if v.last != nil {
		last, since = v.last, now.Sub(v.at)
	}
	add("%s  ptgate %s, since %s, pid %d", now.Format(time.TimeOnly), s.State, s.Since.Format(time.DateTime), s.PID)
	add("  %s", s.Config)
	if len(s.Restart) > 0 {
		add("  %s", needsRestart(s))
	}
	if len(s.Listeners) > 0 || s.Active > 0 {
		add("now  down %s, up %s, %s", rate(s.Down, last.Down, since), rate(s.Up, last.Up, since), plural(int(s.Active), "connection"))
	}
	ofBridge := func(b *bridges.Status) {
		text := fmt.Sprintf("  %s  %s", b.Name, b.Words(now))
		if b.Carriers > 0 || b.Active > 0 {
			text += fmt.Sprintf(" (%s, %s", b.Transport, plural(int(b.Active), "connection"))
			if n := slices.IndexFunc(last.Bridges, func(o bridges.Status) bool { return o.Name == b.Name }); n >= 0 && b.Carriers > 0 {
				text += fmt.Sprintf(", down %s, up %s", rate(b.In, last.Bridges[n].In, since), rate(b.Out, last.Bridges[n].Out, since))
			}
			text += ")"
		}
		add("%s", text)
	}
	first, more := mostUrgent(s.Bridges)
	if len(first) > 0 {
		add("bridges")
	}
	for _, b := range first {
		ofBridge(b)
	}
	if len(more) > 0 {
		add("  … and %d more, below", len(more))
	}
	if len(s.Serve) > 0 {
		add("served")
	}
	for i, x := range s.Serve {
		text := fmt.Sprintf("  %s at %s  %s, %s", x.Transport, x.Address, plural(int(x.Clients), "client connection"), plural(int(x.Active), "stream"))
		if len(last.Serve) == len(s.Serve) {
			text += fmt.Sprintf(", in %s, out %s", rate(x.In, last.Serve[i].In, since), rate(x.Out, last.Serve[i].Out, since))
		}
		if !x.OldUntil.IsZero() {
			text += ", old lines until " + day(x.OldUntil)
		}
		if x.PT.Failures > 0 {
			text += "; its program fails"
		}
		add("%s", text)
	}
	v.note(s, now)
	if len(v.troubles) > 0 {
		add("troubles since %s", v.began.Format(time.TimeOnly))
	}
	for _, t := range slices.Backward(v.troubles) {
		add("  %s  %s", t.at.Format(time.TimeOnly), t.text+times(t.count))
	}
	for i := range s.Bridges {
		if b := &s.Bridges[i]; b.Why != "" {
			add("  %s: %s", b.Name, b.Why)
			if b.Verdict != nil {
				add("  %s: %s: %s", b.Name, b.Verdict.Kind, b.Verdict.Advice())
			}
		}
	}
	if len(more) > 0 {
		add("more bridges")
	}
	for _, b := range more {
		ofBridge(b)
	}
	// They change least: a small terminal leaves them out first.
	if len(s.Routes) > 0 {
		add("routes")
	}
	for _, r := range s.Routes {
		text := r.Action
		if len(r.Via) > 0 {
			text = strings.Join(r.Via, ", ")
			if len(r.Via) > 1 {
				text += ", pick " + r.Pick
			}
		}
		add("  %d  %s", r.Route, text)
	}
	v.last, v.at = s, now
	return all
}

// mostBridges is how many bridges stand above the troubles.
const mostBridges = 8

// mostUrgent divides the bridges into those that stand above the troubles and the others. If
// there are many, those that do not work come first: a small terminal has no room for all.
func mostUrgent(all []bridges.Status) (first, more []*bridges.Status) {
	var well []*bridges.Status
	for i := range all {
		b := &all[i]
		if works := b.State == "up" || b.State == "idle" || b.State == "connecting"; works && len(all) > mostBridges {
			well = append(well, b)
		} else {
			first = append(first, b)
		}
	}
	first = append(first, well...)
	n := min(len(first), mostBridges)
	return first[:n], first[n:]
}

// note finds out what has gone wrong since the last status: the outcomes that have a log
// line of some weight, with its words.
func (v *view) note(s *gateway.Status, now time.Time) {
	rows := map[string]outcome.Row{}
	for o, r := range outcome.Rows() {
		switch outcome.Outcome(o) {
		case outcome.BridgeRecovered, outcome.SessionResumed, outcome.LimitLearned: // no trouble
		default:
			rows[r.Name] = r
		}
	}
	values := map[string]int64{}
	for _, x := range s.Outcomes {
		row := rows[x.Name]
		if row.Message == "" || row.Level < slog.LevelInfo {
			continue
		}
		var labels []string
		for _, name := range row.Labels {
			labels = append(labels, x.Labels[name])
		}
		key := x.Name + " " + strings.Join(labels, " ")
		values[key] = x.Value
		if more := x.Value - v.base[key]; v.base != nil && more > 0 {
			t := mishap{key: key, text: shorten(row.Message) + " (" + strings.Join(labels, ", ") + ")", count: more, at: now}
			if len(labels) == 0 {
				t.text = shorten(row.Message)
			}
			if n := slices.IndexFunc(v.troubles, func(o mishap) bool { return o.key == key }); n >= 0 {
				t.count += v.troubles[n].count
				v.troubles = slices.Delete(v.troubles, n, n+1)
			}
			v.troubles = append(v.troubles, t)
		}
	}
	if v.base == nil && v.began.IsZero() {
		v.began = now
	}
	v.base = values
	v.troubles = v.troubles[max(0, len(v.troubles)-mostTroubles):]
}

// shorten leaves out what a log line adds to its first sentence.
func shorten(message string) string {
	message, _, _ = strings.Cut(message, ": ")
	message, _, _ = strings.Cut(message, ". ")
	return message
}

func times(n int64) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(", %d times", n)
}

// fit breaks lines that are longer than width between words, and leaves out what has no
// room in height.
func fit(lines []string, width, height int) (out []string) {
	for _, line := range lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))] + "  "
		for width > 8 && utf8.RuneCountInString(line) > width {
			runes := []rune(line)
			at := width
			for i := width; i > len(indent); i-- {
				if runes[i] == ' ' {
					at = i
					break
				}
			}
			out = append(out, strings.TrimRight(string(runes[:at]), " "))
			line = indent + strings.TrimLeft(string(runes[at:]), " ")
		}
		out = append(out, line)
	}
	if height > 2 && len(out) > height-1 {
		left := len(out) - (height - 2)
		out = append(out[:height-2], fmt.Sprintf("… and %s", plural(left, "line")))
	}
	return out
}
