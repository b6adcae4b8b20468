package bridges

import (
	"fmt"
	"strings"
	"time"

	"ptgate/gateway/doctor"
	"ptgate/gateway/supervise"
)

// Words say how a bridge does, in a line for a person: "works, 84 ms", "resting: refused;
// again in 40 s". All that shows bridges to people takes it from here.
func (s *Status) Words(now time.Time) string {
	words := []string{s.Brief(now)}
	for _, l := range s.Learned {
		words = append(words, doctor.OfLimit(l).Says)
	}
	if len(s.Learned) > 0 {
		words = append(words, "working around it")
	}
	return strings.Join(words, "; ")
}

// Brief is Words without the limits of the network.
func (s *Status) Brief(now time.Time) string {
	var words []string
	switch s.State {
	case "up":
		text := "works"
		if s.RTT > 0 {
			text += ", " + milliseconds(s.RTT)
		}
		words = append(words, text)
	case "suspect":
		words = append(words, "gives no answer at the moment")
	case "detached":
		words = append(words, "lost; streams have waited for "+seconds(now.Sub(s.Detached)))
	case "resting":
		text := "resting"
		if s.Reason != "" {
			text += ": " + s.Reason
		}
		if wait := s.Until.Sub(now); wait > 0 {
			text += "; again in " + seconds(wait)
		} else {
			text += "; again with the next request"
		}
		words = append(words, text)
	case "connecting":
		words = append(words, "connecting")
	default:
		words = append(words, "idle: nothing needs it")
	}
	if text := s.Leave(now); text != "" {
		words = append(words, text)
	}
	if s.Told {
		words = append(words, "learned from its server: no file has it")
	}
	if s.Changed {
		words = append(words, "it leads to another box than before")
	}
	switch {
	case s.PT == nil || s.PT.Failures == 0:
	case s.PT.State == supervise.Running:
		words = append(words, "its program has failed and was started again")
	default:
		words = append(words, "its program fails")
	}
	return strings.Join(words, "; ")
}

// Leave says that the bridge's server is about to stop, or has stopped; "": neither.
func (s *Status) Leave(now time.Time) string {
	wait := s.Awaited.Sub(now)
	switch {
	case !s.Stopped.IsZero() && !s.Awaited.IsZero() && wait > 0:
		return "its server has stopped; requests wait for it, " + seconds(wait) + " more, and are refused then"
	case !s.Stopped.IsZero():
		text := "its server has stopped, " + seconds(now.Sub(s.Stopped)) + " ago"
		if s.State != "resting" {
			text += "; the next request tries it again"
		}
		return text
	case s.Leaving:
		return "its server is about to stop"
	}
	return ""
}

// milliseconds is a round trip as people say it: "84 ms", "0.4 ms", "1.2 s".
func milliseconds(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// seconds is a time that passes, with no more digits than a person wants: "40 s",
// "3 min", "2 h".
func seconds(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 100*time.Second:
		return fmt.Sprintf("%d s", int(d.Round(time.Second).Seconds()))
	case d < 100*time.Minute:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute).Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Round(time.Hour).Hours()))
}
