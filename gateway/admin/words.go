package admin

import (
	"fmt"
	"strings"
	"time"

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
		if b.Leaving {
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
		look, text = good, "works"
	case supervise.Waiting:
		look, text = bad, "its program has failed"
		if wait := s.Until.Sub(now); wait > 0 {
			text += ", and starts again in " + ago(wait)
		}
	default:
		look, text = warn, "it is "+string(s.State)
	}
	if s.Error != "" {
		text += ": " + s.Error
	}
	return look, text
}

// ago is a length of time with no more digits than a person wants to read.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return "1 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()+0.5))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()+0.5))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()+0.5))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24+0.5))
}

// size is a number of bytes.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < 3 {
		f, i = f/1024, i+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %ciB", f, "KMGT"[i])
	}
	return fmt.Sprintf("%.0f %ciB", f, "KMGT"[i])
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
